/* SPDX-License-Identifier: Apache-2.0 */
/* The parts of the bridge to the Neural Engine that are plain C, and its stub. */
#if !defined(__APPLE__)
#define _POSIX_C_SOURCE 200809L
#endif
#include <dirent.h>
#include <pthread.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "ane_bridge/ane.h"
#include "ane_bridge/folders.h"
#include "ane_bridge/types.h"
#include "ane_bridge/worker.h"
#include "check.h"

static char root[NF_PATH];

static int there(const char *path) {
    struct stat found;
    return lstat(path, &found) == 0;
}

static void below(char out[NF_PATH], const char *name) { check(nf_path_join(out, root, name) == NF_OK, name); }

static void test_types(void) {
    static const struct {
        const char *claimed, *found;
        int same;
    } cases[] = {
        {"c44@0:8I16@20@28^@36", "B44@0:8I16@20@28^@36", 0}, /* a signed byte is extended otherwise than a bool */
        {"B44@0:8I16@20@28^@36", "B44@0:8I16@20@28^@36", 1},
        {"B44@0:8I16@20@28^@36", "B36@0:8i16@20@28^@36", 1},
        {"B@:I@@^@", "B@:Q@@^@", 0},
        {"B@:I@@^@", "B@:I@@", 0},
        {"B@:I@@", "B@:I@@^@", 0},
        {"v@:@", "@16@0:8@16", 1},
        {"v@:", "v16@0:8@16", 0},
        {"@@:^{__IOSurface=}", "@24@0:8^{__IOSurface=Qi[4{a=bc}]}16", 1},
        {"@@:^{__IOSurface=}@", "@24@0:8^v16@24", 1},
        {"@@:^^v", "@@:^@", 1},
        {"@@:@", "@@:@\"NSString\"", 1},
        {"@@:@I", "@@:@\"NSString\"I", 1},
        {"@@:@?I", "@@:@?I", 1},
        {"@@:{a=I}I", "@@:{a=I}I", 1},
        {"^v@:", "r^v@:", 1},
        {"@@:", "@@:{a", 0},
        {"@@:@", "@@:@\"a", 1}, /* cut off: no byte behind it is read */
        {"@@:^", "@@:^", 1},
        {"", "", 1},
        {"v", "", 0},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char line[160];
        snprintf(line, sizeof line, "types %s and %s", cases[i].claimed, cases[i].found);
        check(nf_same_types(cases[i].claimed, cases[i].found) == cases[i].same, line);
    }
}

static void test_writing(void) {
    static const char *const refused[] = {"", "..", "../w", "/w", "a//b", "a/../b", "a/", "./a", "."};
    char folder[NF_PATH], file[NF_PATH], text[8] = "";
    below(folder, "program");
    check(nf_folder_write(folder, "weights/w.bin", "abc", 3) == NF_OK, "a file in new folders");
    check(nf_path_join(file, folder, "weights/w.bin") == NF_OK, "its path");
    check(nf_folder_write(folder, "weights/w.bin", "xyz", 3) == NF_OK, "written again");
    FILE *f = fopen(file, "rb");
    check(f && fread(text, 1, 8, f) == 3 && memcmp(text, "xyz", 3) == 0, "holds the last bytes");
    if (f) fclose(f);
    check(nf_folder_write(folder, "empty", NULL, 0) == NF_OK, "an empty file");
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++)
        check(nf_folder_write(folder, refused[i], "x", 1) == NF_ERR_ARGUMENT, refused[i]);
    check(nf_folder_write(folder, "a..b/..c", "x", 1) == NF_OK, "dots inside names");
    check(nf_folder_write(file, "w", "x", 1) == NF_ERR_DEVICE, "a folder that is a file");
    char name[2 * NF_PATH];
    memset(name, 'x', sizeof name);
    name[sizeof name - 1] = '\0';
    check(nf_folder_write(folder, name, "x", 1) == NF_ERR_ARGUMENT && nf_folder_make(name) == NF_ERR_ARGUMENT,
          "a path too long");
}

static void test_removing(void) {
    char folder[NF_PATH], kept[NF_PATH], link[NF_PATH];
    below(folder, "gone");
    below(kept, "kept");
    check(nf_folder_write(kept, "file", "x", 1) == NF_OK && nf_folder_write(folder, "a/b/c", "x", 1) == NF_OK, "two folders");
    check(nf_path_join(link, folder, "a/link") == NF_OK && symlink(kept, link) == 0, "a link from one to the other");
    nf_folder_remove(folder);
    check(!there(folder), "the folder is gone");
    check(nf_path_join(link, kept, "file") == NF_OK && there(link), "what the link pointed at is not");
    nf_folder_remove(folder);
    check(!there(folder), "removing it again does nothing");
}

static void test_claims(void) {
    const char *name = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef_A";
    char scratch[NF_PATH], path[2][NF_PATH], marker[2][NF_PATH], dead[NF_PATH], other[NF_PATH];
    below(scratch, "scratch");
    check(nf_folder_claim(scratch, name, path[0], marker[0]) == NF_OK &&
              nf_folder_claim(scratch, name, path[1], marker[1]) == NF_OK,
          "one folder, claimed twice");
    nf_folder_release(scratch, path[0], marker[0]);
    check(there(path[1]), "stays while the other has it");
    nf_folder_reap(scratch);
    check(there(path[1]), "is not reaped while this process lives");
    nf_folder_release(scratch, path[1], marker[1]);
    check(!there(path[1]), "is gone after the last");
    check(nf_path_join(dead, scratch, name) == NF_OK && nf_path_join(other, scratch, "documents") == NF_OK, "paths");
    check(nf_folder_write(dead, "neuralforge-999999999-abcdef", "", 0) == NF_OK, "a folder of a process that is dead");
    check(nf_folder_write(other, "neuralforge-999999999-abcdef", "", 0) == NF_OK, "a folder that is no program's");
    nf_folder_reap(scratch);
    check(!there(dead) && there(other), "the first alone is reaped");
    check(nf_folder_write(dead, "model.mil", "", 0) == NF_OK, "a program's folder of others");
    nf_folder_reap(scratch);
    check(there(dead), "is left alone");
}

static void test_locks(void) {
    char path[NF_PATH];
    int a = -1, b = -1, c = -1;
    below(path, "lock");
    check(nf_folder_lock(path, 0, 0.0, &a) == NF_OK && nf_folder_lock(path, 0, 0.0, &b) == NF_OK, "two share a lock");
    check(nf_folder_lock(path, 1, 0.05, &c) == NF_ERR_TIMEOUT && c == -1, "a third cannot have it alone");
    nf_folder_unlock(b);
    check(nf_folder_lock(path, 1, 0.0, &a) == NF_OK, "the last exchanges it");
    check(nf_folder_lock(path, 0, 0.05, &c) == NF_ERR_TIMEOUT, "and is alone");
    nf_folder_unlock(a);
    nf_folder_unlock(-1);
    below(path, "no/such/folder/lock");
    check(nf_folder_lock(path, 0, 0.0, &c) == NF_ERR_DEVICE && c == -1, "no folder for the lock");
}

/* --- the worker */

typedef struct job {
    pthread_mutex_t mutex;
    int held, calls, discards;
} job;

static void call(void *context) {
    job *j = context;
    pthread_mutex_lock(&j->mutex);
    j->calls++;
    pthread_mutex_unlock(&j->mutex);
}

static void discard(void *context) { ((job *)context)->discards++; }

static void test_worker(void) {
    static job j = {.mutex = PTHREAD_MUTEX_INITIALIZER}; /* a lost worker reads it to the end */
    nf_worker *w;
    check(nf_worker_start(&w) == NF_OK, "a worker starts");
    int good = 0;
    for (int i = 0; i < 1000; i++) good += nf_worker_run(w, call, discard, &j, 10.0) == NF_OK;
    check(good == 1000 && j.calls == 1000 && j.discards == 0, "1000 calls");
    nf_worker_stop(w);
    nf_worker_stop(NULL);
    check(nf_worker_start(&w) == NF_OK, "another starts");
    pthread_mutex_lock(&j.mutex);
    check(nf_worker_run(w, call, discard, &j, 0.05) == NF_ERR_TIMEOUT, "a call that hangs is left");
    check(nf_worker_run(w, call, discard, &j, 0.05) == NF_ERR_STATE, "its worker takes no more");
    nf_worker_stop(w);
    pthread_mutex_unlock(&j.mutex);
    for (int i = 0; i < 1000; i++) {
        pthread_mutex_lock(&j.mutex);
        int over = j.calls == 1001;
        pthread_mutex_unlock(&j.mutex);
        if (over) break;
        nanosleep(&(struct timespec){0, 1000000}, NULL);
    }
    check(j.calls == 1001, "and ends when the call returns");
}

static void test_stub(void) {
    nf_ane_device *device;
    nf_ane_info info;
    check(!nf_ane_built() && nf_ane_compile_count() == 0, "the stub says what it is");
    check(nf_ane_open(&device, NULL, NULL) == NF_ERR_UNSUPPORTED && !device, "nothing opens");
    check(strstr(nf_last_error(), "use the cpu backend") != NULL, "and the message has the way out");
    nf_ane_device_info(NULL, &info);
    check(info.cores == -1 && *info.scratch == '\0', "nothing is known of the device");
    nf_ane_request_free(NULL);
    nf_ane_surface_free(NULL);
    nf_ane_program_free(NULL);
    nf_ane_close(NULL);
}

int main(void) {
    char place[] = "/tmp/nf-test-ane-XXXXXX";
    check(mkdtemp(place) != NULL, "a folder for the test");
    snprintf(root, sizeof root, "%s", place);
    test_types();
    test_writing();
    test_removing();
    test_claims();
    test_locks();
    test_worker();
    test_stub();
    nf_folder_remove(root);
    return report();
}
