/* The few things that a program on a bare board needs: text and files through the debugger (semihosting), a counter, the stack. */
#ifndef BOARD_H
#define BOARD_H

#include <stdint.h>

void board_print(const char *text);
void board_print_number(const char *before, uint32_t number, const char *after);
void board_exit(int status);
/* Arguments of the command line, at most `most`, and their number; 0 where the debugger has none. */
int board_arguments(char **arguments, int most);
int board_open(const char *name, int write);                /* a handle, -1 if it cannot be opened */
uint32_t board_read(int file, void *data, uint32_t bytes);  /* bytes that could be read */
int board_write(int file, const void *data, uint32_t bytes); /* 0: all were written */

/* Instructions in the emulator, clock cycles on the board, since the first call. */
uint32_t board_counter(void);

void board_paint_stack(void);
uint32_t board_stack_used(void); /* bytes, since it was painted */
uint32_t board_stack_size(void);

#endif
