/* SPDX-License-Identifier: Apache-2.0 */
/* Status codes and the one-line message of the last failure, kept per thread. */
#ifndef NF_CORE_STATUS_H
#define NF_CORE_STATUS_H

typedef enum nf_status {
    NF_OK = 0,
    NF_ERR_ARGUMENT = 1,    /* a value the caller passed cannot be used */
    NF_ERR_MEMORY = 2,      /* an allocation failed */
    NF_ERR_THREAD = 3,      /* a thread could not be started */
    NF_ERR_STATE = 4,       /* the call does not fit what was set up before */
    NF_ERR_UNSUPPORTED = 5, /* not on this machine, or not in this build */
    NF_ERR_DEVICE = 6,      /* the device, its driver or its compiler refused */
    NF_ERR_TIMEOUT = 7      /* the device did not answer in time */
} nf_status;

#if defined(__GNUC__)
#define NF_PRINTF(fmt, args) __attribute__((format(printf, fmt, args)))
#else
#define NF_PRINTF(fmt, args)
#endif

/* Store a message for nf_last_error and return `code`. */
nf_status nf_fail(nf_status code, const char *format, ...) NF_PRINTF(2, 3);

/* The message of this thread's last failure; never NULL, valid until the next failure on this thread. */
const char *nf_last_error(void);

#define NF_TRY(expression)                                                                                                     \
    do {                                                                                                                       \
        nf_status nf_try_status_ = (expression);                                                                               \
        if (nf_try_status_ != NF_OK) return nf_try_status_;                                                                    \
    } while (0)

#endif
