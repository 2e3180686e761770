/* See board.h. Semihosting: a breakpoint that the debugger or the emulator answers. */
#include "board.h"

#define PAINT 0xa5a5a5a5u
#define REGISTER(address) (*(volatile uint32_t *)(address))

extern uint32_t bss_end[], stack_begin[];

enum { SYS_OPEN = 0x01, SYS_WRITE0 = 0x04, SYS_WRITE = 0x05, SYS_READ = 0x06, SYS_GET_CMDLINE = 0x15, SYS_EXIT_EXTENDED = 0x20 };

static int32_t ask(int operation, const void *parameters)
{
    int32_t answer;

#ifndef EMULATED
    if (!(REGISTER(0xe000edf0) & 1)) /* no debugger is there (DHCSR): the breakpoint would be a fault */
        return -1;
#endif
    __asm__ volatile("mov r0, %1\n\tmov r1, %2\n\tbkpt 0xab\n\tmov %0, r0"
                     : "=r"(answer) : "r"(operation), "r"(parameters) : "r0", "r1", "memory");
    return answer;
}

static uint32_t length(const char *text)
{
    uint32_t n = 0;

    while (text[n])
        n++;
    return n;
}

void board_print(const char *text)
{
    ask(SYS_WRITE0, text);
}

void board_print_number(const char *before, uint32_t number, const char *after)
{
    char digits[11], *at = digits + 10;

    *at = 0;
    do
        *--at = (char)('0' + number % 10);
    while (number /= 10);
    board_print(before);
    board_print(at);
    board_print(after);
}

void board_exit(int status)
{
    uint32_t reason[2] = {0x20026, (uint32_t)status}; /* the application's own exit */

    ask(SYS_EXIT_EXTENDED, reason);
    for (;;)
        ;
}

int board_arguments(char **arguments, int most)
{
    static char line[512];
    struct {
        char *text;
        uint32_t size;
    } given = {line, sizeof line};
    char *at = line;
    int count = 0;

    if (ask(SYS_GET_CMDLINE, &given) != 0)
        return 0;
    while (*at && count < most) {
        arguments[count++] = at;
        while (*at && *at != ' ')
            at++;
        if (*at)
            *at++ = 0;
    }
    return count;
}

int board_open(const char *name, int write)
{
    struct {
        const char *name;
        int mode;
        uint32_t length;
    } file = {name, write ? 5 : 1, length(name)}; /* "wb", "rb" */

    return (int)ask(SYS_OPEN, &file);
}

uint32_t board_read(int file, void *data, uint32_t bytes)
{
    struct {
        int file;
        void *data;
        uint32_t bytes;
    } block = {file, data, bytes};

    return bytes - (uint32_t)ask(SYS_READ, &block);
}

int board_write(int file, const void *data, uint32_t bytes)
{
    struct {
        int file;
        const void *data;
        uint32_t bytes;
    } block = {file, data, bytes};

    return (int)ask(SYS_WRITE, &block);
}

#ifdef EMULATED
/* CMSDK timer 0 of the machine mps2-an386 counts down at 25 MHz; an instruction takes a nanosecond with -icount shift=0. */
uint32_t board_counter(void)
{
    if (!(REGISTER(0x40000000) & 1)) {
        REGISTER(0x40000008) = 0xffffffffu;
        REGISTER(0x40000004) = 0xffffffffu;
        REGISTER(0x40000000) = 1;
    }
    return (0xffffffffu - REGISTER(0x40000004)) * 40;
}
#else
/* The cycle counter of the processor's trace unit (DWT). */
uint32_t board_counter(void)
{
    REGISTER(0xe000edfc) |= 1u << 24;
    REGISTER(0xe0001000) |= 1;
    return REGISTER(0xe0001004);
}
#endif

void board_paint_stack(void)
{
    uint32_t *sp, *at;

    __asm__ volatile("mov %0, sp" : "=r"(sp));
    for (at = bss_end; at < sp - 16; at++) /* the function may still push registers */
        *at = PAINT;
}

uint32_t board_stack_used(void)
{
    uint32_t *at = bss_end;

    while (at < stack_begin && *at == PAINT)
        at++;
    return (uint32_t)((char *)stack_begin - (char *)at);
}

uint32_t board_stack_size(void)
{
    return (uint32_t)((char *)stack_begin - (char *)bss_end);
}
