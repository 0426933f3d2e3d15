/* test_guard.c -- a mapped file is truncated behind the reader's back; what then reaches the program.
 *
 * Whatever needs another disposition of SIGBUS, or ends the process, happens in a forked child: the disposition is
 * the process', and install counts once. */
#include "kv/guard.h"

#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"
#include "kv/base.h"

enum { CHILD_HANDLED = 42, CHILD_CAUGHT = 43, CHILD_WENT_ON = 44 };

/* A page of a file that has become empty: any access raises SIGBUS. */
static volatile uint8_t *broken_page(void) {
    int fd = memfd_create("kv-test-guard", MFD_CLOEXEC);
    if (fd < 0 || ftruncate(fd, KV_PAGE_SIZE) != 0) abort();
    uint8_t *page = mmap(NULL, KV_PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (page == MAP_FAILED) abort();
    page[0] = 1;
    if (ftruncate(fd, 0) != 0) abort();
    close(fd);
    return page;
}

static void give_back(volatile uint8_t *page) { munmap((void *)(uintptr_t)page, KV_PAGE_SIZE); }

static bool read_is_caught(volatile uint8_t *page) {
    volatile bool caught = false;
    kv_guard guard;
    if (KV_GUARD_CAUGHT(&guard)) {
        caught = true;
        goto out;
    }
    (void)page[0];
out:
    kv_guard_leave(&guard);
    return caught;
}

static bool write_is_caught(volatile uint8_t *page) {
    volatile bool caught = false;
    kv_guard guard;
    if (KV_GUARD_CAUGHT(&guard)) {
        caught = true;
        goto out;
    }
    page[100] = 7;
out:
    kv_guard_leave(&guard);
    return caught;
}

TEST(a_read_and_a_write_are_caught) {
    volatile uint8_t *page = broken_page();
    CHECK(read_is_caught(page));
    CHECK(write_is_caught(page));
    give_back(page);
}

TEST(catching_works_again_and_again) { /* SIGBUS must not stay blocked after the jump. */
    volatile uint8_t *page = broken_page();
    for (int i = 0; i < 1000; i++) CHECK(read_is_caught(page));
    give_back(page);
}

TEST(nothing_is_caught_where_nothing_fails) {
    uint8_t page[1] = {5};
    CHECK(!read_is_caught(page));
}

TEST(the_innermost_guard_catches) {
    volatile uint8_t *page = broken_page();
    volatile bool inner_caught = false, outer_caught = false, went_on = false;
    kv_guard outer;
    if (KV_GUARD_CAUGHT(&outer)) {
        outer_caught = true;
        goto out;
    }
    inner_caught = read_is_caught(page);
    (void)page[0]; /* The inner guard is gone: now it is the outer one's turn. */
    went_on = true; /* Volatile: the compiler may move another store before an access it cannot see failing. */
out:
    kv_guard_leave(&outer);
    CHECK(inner_caught);
    CHECK(!went_on);
    CHECK(outer_caught);
    give_back(page);
}

TEST(a_fault_after_a_catch_goes_to_the_guard_outside) {
    volatile uint8_t *page = broken_page();
    volatile int inner_catches = 0;
    volatile bool outer_caught = false, went_on = false;
    kv_guard outer, inner;
    if (KV_GUARD_CAUGHT(&outer)) {
        outer_caught = true;
        goto out;
    }
    if (KV_GUARD_CAUGHT(&inner)) inner_catches = inner_catches + 1;
    (void)page[0]; /* First caught by inner, which then comes back to this very line. */
    went_on = true;
out:
    kv_guard_leave(&outer);
    CHECK_EQ(inner_catches, 1);
    CHECK(!went_on);
    CHECK(outer_caught);
    give_back(page);
}

static void *read_many_times(void *page) {
    uintptr_t caught_count = 0;
    for (int i = 0; i < 200; i++) caught_count += read_is_caught(page);
    return (void *)caught_count;
}

TEST(each_thread_has_its_own_guards) {
    volatile uint8_t *page = broken_page();
    pthread_t threads[2];
    for (int i = 0; i < 2; i++) {
        CHECK_EQ(pthread_create(&threads[i], NULL, read_many_times, (void *)(uintptr_t)page), 0);
    }
    for (int i = 0; i < 2; i++) {
        void *caught_count;
        pthread_join(threads[i], &caught_count);
        CHECK_EQ((uintptr_t)caught_count, 200);
    }
    give_back(page);
}

/* --- what was there before; each in a child of its own, which has not installed yet --- */

static int status_of_child(void (*body)(void)) {
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        alarm(10); /* A circle of handlers must end as a failure. */
        body();
        _exit(CHILD_WENT_ON);
    }
    int status = 0;
    if (child < 0 || waitpid(child, &status, 0) != child) abort();
    return status;
}

static bool exited_with(int status, int code) { return WIFEXITED(status) && WEXITSTATUS(status) == code; }
static bool died_of(int status, int signal_number) { return WIFSIGNALED(status) && WTERMSIG(status) == signal_number; }

static void set_disposition(void (*handler)(int), void (*action)(int, siginfo_t *, void *), int flags) {
    struct sigaction wanted;
    memset(&wanted, 0, sizeof wanted);
    sigemptyset(&wanted.sa_mask);
    if (action != NULL) wanted.sa_sigaction = action;
    else wanted.sa_handler = handler;
    wanted.sa_flags = flags | (action != NULL ? SA_SIGINFO : 0);
    if (sigaction(SIGBUS, &wanted, NULL) != 0) abort();
}

static bool sigbus_is_blocked(void) {
    sigset_t blocked;
    pthread_sigmask(SIG_BLOCK, NULL, &blocked);
    return sigismember(&blocked, SIGBUS) == 1;
}

static void plain_handler(int signal_number) {
    _exit(signal_number == SIGBUS && sigbus_is_blocked() ? CHILD_HANDLED : 1);
}

static void info_handler(int signal_number, siginfo_t *info, void *context) {
    bool good = signal_number == SIGBUS && info->si_code == BUS_ADRERR && info->si_addr != NULL && context != NULL;
    _exit(good && !sigbus_is_blocked() ? CHILD_HANDLED : 1);
}

static void returning_handler(int signal_number) { (void)signal_number; }

static void install_and_fault(void) {
    kv_guard_install();
    volatile uint8_t *page = broken_page();
    if (!read_is_caught(page)) _exit(1);
    (void)page[0];
}

static void with_plain_handler(void) { set_disposition(plain_handler, NULL, 0); install_and_fault(); }
static void with_info_handler(void) { set_disposition(NULL, info_handler, SA_NODEFER); install_and_fault(); }
static void with_default(void) { set_disposition(SIG_DFL, NULL, 0); install_and_fault(); }
static void with_ignore(void) { set_disposition(SIG_IGN, NULL, 0); install_and_fault(); }
static void with_one_shot_handler(void) {
    set_disposition(returning_handler, NULL, (int)SA_RESETHAND);
    install_and_fault();
}

TEST(a_handler_from_before_gets_what_no_guard_catches) {
    CHECK(exited_with(status_of_child(with_plain_handler), CHILD_HANDLED));
    CHECK(exited_with(status_of_child(with_info_handler), CHILD_HANDLED));
}

TEST(without_a_handler_a_fault_ends_the_process) {
    CHECK(died_of(status_of_child(with_default), SIGBUS));
    CHECK(died_of(status_of_child(with_ignore), SIGBUS));
}

TEST(a_one_shot_handler_is_called_once) { CHECK(died_of(status_of_child(with_one_shot_handler), SIGBUS)); }

static void sent_to_default(void) { set_disposition(SIG_DFL, NULL, 0); kv_guard_install(); raise(SIGBUS); }
static void sent_to_ignore(void) { set_disposition(SIG_IGN, NULL, 0); kv_guard_install(); raise(SIGBUS); }
static void sent_into_a_guard(void) {
    set_disposition(plain_handler, NULL, 0);
    kv_guard_install();
    kv_guard guard;
    if (KV_GUARD_CAUGHT(&guard)) _exit(CHILD_CAUGHT);
    raise(SIGBUS);
}

TEST(a_sigbus_that_was_sent_is_never_caught) {
    CHECK(died_of(status_of_child(sent_to_default), SIGBUS));
    CHECK(exited_with(status_of_child(sent_to_ignore), CHILD_WENT_ON));
    CHECK(exited_with(status_of_child(sent_into_a_guard), CHILD_HANDLED));
}

static void leave_in_wrong_order(void) {
    kv_guard outer, inner;
    kv_guard_enter(&outer);
    kv_guard_enter(&inner);
    kv_guard_leave(&outer);
    kv_guard_leave(&outer);
}

static void silently_leave_in_wrong_order(void) {
    if (freopen("/dev/null", "w", stderr) == NULL) _exit(1);
    set_disposition(SIG_DFL, NULL, 0);
    leave_in_wrong_order();
}

TEST(leaving_in_the_wrong_order_is_a_broken_invariant) {
    CHECK(died_of(status_of_child(silently_leave_in_wrong_order), SIGABRT));
}

int main(void) {
    RUN(a_handler_from_before_gets_what_no_guard_catches); /* Children first: they inherit an untouched disposition. */
    RUN(without_a_handler_a_fault_ends_the_process);
    RUN(a_one_shot_handler_is_called_once);
    RUN(a_sigbus_that_was_sent_is_never_caught);
    RUN(leaving_in_the_wrong_order_is_a_broken_invariant);

    kv_guard_install();
    kv_guard_install();
    RUN(a_read_and_a_write_are_caught);
    RUN(catching_works_again_and_again);
    RUN(nothing_is_caught_where_nothing_fails);
    RUN(the_innermost_guard_catches);
    RUN(a_fault_after_a_catch_goes_to_the_guard_outside);
    RUN(each_thread_has_its_own_guards);
    return check_report();
}
