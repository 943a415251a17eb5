// SPDX-License-Identifier: Apache-2.0
// Renders conversations as Ollama does: Go's own text/template with the messages as .Messages.
// stdin: [{"template": "...", "messages": [{"role", "content", "thinking"}]}]; stdout: a list of texts.
package main

import (
	"encoding/json"
	"os"
	"strings"
	"text/template"
)

type message struct{ Role, Content, Thinking string }

type job struct {
	Template string
	Messages []*message
}

func main() {
	var jobs []job
	if err := json.NewDecoder(os.Stdin).Decode(&jobs); err != nil {
		panic(err)
	}
	texts := make([]string, len(jobs))
	for i, j := range jobs {
		var out strings.Builder
		parsed := template.Must(template.New("").Option("missingkey=zero").Parse(j.Template))
		if err := parsed.Execute(&out, map[string]any{"Messages": j.Messages, "System": "", "Response": ""}); err != nil {
			panic(err)
		}
		texts[i] = out.String()
	}
	if err := json.NewEncoder(os.Stdout).Encode(texts); err != nil {
		panic(err)
	}
}
