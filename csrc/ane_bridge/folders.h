/* SPDX-License-Identifier: Apache-2.0 */
/* Where programs lie on disk while the system compiles, loads and reads them.

   Two kinds of folder.  A *scratch* folder has a name that the system prescribes and is shared by all processes that load the
   same program; each of them leaves a marker with its process id in it, and who removes the last marker removes the folder.
   A *cached* folder stays; a lock file beside it says who uses it (shared) and who may change it (exclusive). */
#ifndef NF_ANE_BRIDGE_FOLDERS_H
#define NF_ANE_BRIDGE_FOLDERS_H

#include <stddef.h>

#include "../core/status.h"

enum { NF_PATH = 1024 };

/* out = a/b; NF_ERR_ARGUMENT when that is longer than NF_PATH. */
nf_status nf_path_join(char out[NF_PATH], const char *a, const char *b);

/* The folder and those above it, readable by their owner alone where they are new. */
nf_status nf_folder_make(const char *path);

/* Write folder/name under a temporary name and rename it; `name` may have folders in it, but none that lead out. */
nf_status nf_folder_write(const char *folder, const char *name, const void *data, size_t size);

/* Remove a folder with all in it; links are removed, not followed.  A folder that is not there is no error. */
void nf_folder_remove(const char *path);

/* Make scratch/name (in `path`) and put a marker of this process into it (path of it in `marker`). */
nf_status nf_folder_claim(const char *scratch, const char *name, char path[NF_PATH], char marker[NF_PATH]);

/* Take the marker away, and the folder with it when no living process has another one there. */
void nf_folder_release(const char *scratch, const char *path, const char *marker);

/* Remove the folders of `scratch` in which only dead processes have markers.  Others are left alone. */
void nf_folder_reap(const char *scratch);

/* Lock the file `path`; the lock ends with nf_folder_unlock or the process.  *fd holds the lock, or an earlier one of the same
   file, which is exchanged.  NF_ERR_TIMEOUT when others held it for `seconds`. */
nf_status nf_folder_lock(const char *path, int exclusive, double seconds, int *fd);
void nf_folder_unlock(int fd);

#endif
