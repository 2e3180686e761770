/* What runs before main: the vector table, and the memory that C expects. */
#include <stdint.h>

#include "board.h"

extern uint32_t data_stored[], data_begin[], data_end[], bss_begin[], bss_end[], stack_begin[];
int main(void);
void reset(void);

void reset(void)
{
    uint32_t *to, *from = data_stored;

    for (to = data_begin; to < data_end; to++)
        *to = *from++;
    for (to = bss_begin; to < bss_end; to++)
        *to = 0;
    board_paint_stack();
    board_exit(main());
}

static void fault(void)
{
    board_print("FAIL: the processor stopped with a fault\n");
    board_exit(3);
}

/* The processor takes its stack and its first instruction from here; the program has no interrupts. */
__attribute__((section(".vectors"), used)) static const struct {
    uint32_t *stack;
    void (*handlers[15])(void);
} vectors = {stack_begin, {reset, fault, fault, fault, fault, fault}};
