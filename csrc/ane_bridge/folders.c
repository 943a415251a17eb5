/* SPDX-License-Identifier: Apache-2.0 */
#define _DEFAULT_SOURCE /* flock */
#define _POSIX_C_SOURCE 200809L
#if defined(__APPLE__)
#define _DARWIN_C_SOURCE
#endif
#include "folders.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define MARKER "neuralforge-"
#define SCRATCH_LOCK "neuralforge-ane.lock"
enum { DEEPEST = 16, SHORTEST_NAME = 64 }; /* of the folders that are looked into; the name of a program is three hashes */

nf_status nf_path_join(char out[NF_PATH], const char *a, const char *b) {
    int n = snprintf(out, NF_PATH, "%s/%s", a, b);
    return n > 0 && n < NF_PATH ? NF_OK : nf_fail(NF_ERR_ARGUMENT, "path too long: %s/%s", a, b);
}

nf_status nf_folder_make(const char *path) {
    char part[NF_PATH];
    size_t length = strlen(path);
    if (length == 0 || length >= sizeof part) return nf_fail(NF_ERR_ARGUMENT, "no usable path of a folder: '%s'", path);
    for (size_t i = 1; i <= length; i++) {
        if (path[i] != '/' && path[i] != '\0') continue;
        memcpy(part, path, i);
        part[i] = '\0';
        struct stat found;
        if (mkdir(part, 0700) != 0 && !(stat(part, &found) == 0 && S_ISDIR(found.st_mode)))
            return nf_fail(NF_ERR_DEVICE, "folder %s: %s", part, strerror(errno));
    }
    return NF_OK;
}

/* Every part of "weights/w.bin" is a plain name. */
static int stays_inside(const char *name) {
    for (const char *part = name;; part++) {
        size_t length = strcspn(part, "/");
        if (length == 0 || (length <= 2 && strncmp(part, "..", length) == 0)) return 0;
        part += length;
        if (*part == '\0') return 1;
    }
}

static nf_status write_all(int fd, const char *data, size_t size) {
    while (size > 0) {
        ssize_t n = write(fd, data, size < (1u << 30) ? size : (1u << 30));
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return NF_ERR_DEVICE;
        data += n, size -= (size_t)n;
    }
    return NF_OK;
}

nf_status nf_folder_write(const char *folder, const char *name, const void *data, size_t size) {
    char path[NF_PATH], temporary[NF_PATH];
    if (!stays_inside(name)) return nf_fail(NF_ERR_ARGUMENT, "'%s' is no name of a file inside a program's folder", name);
    NF_TRY(nf_path_join(path, folder, name));
    char *slash = strrchr(path, '/');
    *slash = '\0';
    NF_TRY(nf_folder_make(path));
    NF_TRY(nf_path_join(temporary, path, ".new-XXXXXX"));
    *slash = '/';
    int fd = mkstemp(temporary);
    if (fd < 0) return nf_fail(NF_ERR_DEVICE, "%s cannot be written: %s", path, strerror(errno));
    nf_status status = write_all(fd, data, size);
    if (close(fd) != 0 || status != NF_OK || rename(temporary, path) != 0) {
        status = nf_fail(NF_ERR_DEVICE, "%s cannot be written: %s", path, strerror(errno));
        unlink(temporary);
    }
    return status;
}

static void remove_at(int parent, const char *name, int depth) {
    if (unlinkat(parent, name, 0) == 0 || depth == DEEPEST) return;
    int fd = openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    DIR *folder = fd < 0 ? NULL : fdopendir(fd);
    if (!folder) {
        if (fd >= 0) close(fd);
        return;
    }
    for (struct dirent *e; (e = readdir(folder));)
        if (strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0) remove_at(fd, e->d_name, depth + 1);
    closedir(folder);
    unlinkat(parent, name, AT_REMOVEDIR);
}

void nf_folder_remove(const char *path) { remove_at(AT_FDCWD, path, 0); }

static int lock_scratch(const char *scratch) {
    char path[NF_PATH];
    int fd = -1;
    if (nf_path_join(path, scratch, SCRATCH_LOCK) != NF_OK || nf_folder_lock(path, 1, 10.0, &fd) != NF_OK) return -1;
    return fd;
}

/* The markers of a folder: how many, and how many of living processes. */
typedef struct claims {
    int all, living;
} claims;

static claims claims_of(const char *path) {
    claims found = {0, 0};
    DIR *folder = opendir(path);
    for (struct dirent *e; folder && (e = readdir(folder));) {
        if (strncmp(e->d_name, MARKER, sizeof MARKER - 1) != 0) continue;
        long pid = strtol(e->d_name + sizeof MARKER - 1, NULL, 10);
        found.all++;
        found.living += pid > 0 && (kill((pid_t)pid, 0) == 0 || errno == EPERM);
    }
    if (folder) closedir(folder);
    return found;
}

nf_status nf_folder_claim(const char *scratch, const char *name, char path[NF_PATH], char marker[NF_PATH]) {
    char file[64];
    snprintf(file, sizeof file, MARKER "%ld-XXXXXX", (long)getpid());
    NF_TRY(nf_path_join(path, scratch, name));
    NF_TRY(nf_path_join(marker, path, file));
    NF_TRY(nf_folder_make(scratch));
    int lock = lock_scratch(scratch);
    nf_status status = lock < 0 ? NF_ERR_DEVICE : nf_folder_make(path);
    if (status == NF_OK) {
        int fd = mkstemp(marker);
        if (fd >= 0)
            close(fd);
        else
            status = nf_fail(NF_ERR_DEVICE, "%s cannot be written: %s", path, strerror(errno));
    }
    nf_folder_unlock(lock);
    return status;
}

void nf_folder_release(const char *scratch, const char *path, const char *marker) {
    int lock = lock_scratch(scratch);
    if (lock < 0) return; /* the marker stays, so that the folder is reaped one day */
    unlink(marker);
    if (claims_of(path).living == 0) nf_folder_remove(path);
    nf_folder_unlock(lock);
}

static int is_program_name(const char *name) {
    size_t length = strspn(name, "0123456789abcdefABCDEF_");
    return length >= SHORTEST_NAME && name[length] == '\0';
}

void nf_folder_reap(const char *scratch) {
    DIR *folder = opendir(scratch);
    int lock = folder ? lock_scratch(scratch) : -1;
    for (struct dirent *e; lock >= 0 && (e = readdir(folder));) {
        char path[NF_PATH];
        if (!is_program_name(e->d_name) || nf_path_join(path, scratch, e->d_name) != NF_OK) continue;
        claims found = claims_of(path);
        if (found.all > 0 && found.living == 0) nf_folder_remove(path);
    }
    nf_folder_unlock(lock);
    if (folder) closedir(folder);
}

nf_status nf_folder_lock(const char *path, int exclusive, double seconds, int *fd) {
    const struct timespec pause = {0, 10000000};
    int own = *fd < 0;
    if (own) *fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (*fd < 0) return nf_fail(NF_ERR_DEVICE, "%s cannot be opened: %s", path, strerror(errno));
    for (double waited = 0.0; flock(*fd, (exclusive ? LOCK_EX : LOCK_SH) | LOCK_NB) != 0; waited += 0.01) {
        if ((errno == EWOULDBLOCK || errno == EINTR) && waited < seconds) {
            nanosleep(&pause, NULL);
            continue;
        }
        nf_status status = errno == EWOULDBLOCK
                               ? nf_fail(NF_ERR_TIMEOUT, "%s has been locked by another process for %g s", path, seconds)
                               : nf_fail(NF_ERR_DEVICE, "%s cannot be locked: %s", path, strerror(errno));
        if (own) nf_folder_unlock(*fd), *fd = -1;
        return status;
    }
    return NF_OK;
}

void nf_folder_unlock(int fd) {
    if (fd >= 0) close(fd);
}
