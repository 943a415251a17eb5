# SPDX-License-Identifier: Apache-2.0
"""NeuralForge: fine-tune a language model on your own machine, on documents that stay there."""

__version__ = "0.1.0"
