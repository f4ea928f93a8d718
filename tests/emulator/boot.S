# All that the emulated machine has for firmware: starts the Linux kernel that check_avx512.py has
# laid into its memory, by the 32-bit boot protocol (x86/boot.rst in the kernel's documentation).
    .set ROM, 0xf0000
    .set BOOT_PARAMETERS, 0x10000
    .set KERNEL, 0x100000
    .set MEMORY, 256 << 20
    .set BLOCK, 1 << 20 # of the emulator's memory
    .set CODE, 0x10     # selectors that the protocol asks for
    .set DATA, 0x18

    .code16
start:
    cli
    lgdtl %cs:descriptors_register - start
    movl %cr0, %eax
    orl $1, %eax
    movl %eax, %cr0
    ljmpl $CODE, $ROM + protected - start

    .code32
protected:
    movl $DATA, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
# The emulator places a block of memory when it is first touched, behind the block touched before;
# it has read the memory's image as one piece.  So: touch all blocks in their order.
    xorl %eax, %eax
touch:
    movb (%eax), %bl
    addl $BLOCK, %eax
    cmpl $MEMORY, %eax
    jb touch
    movl $BOOT_PARAMETERS, %esi
    xorl %ebx, %ebx
    xorl %ebp, %ebp
    xorl %edi, %edi
    movl $KERNEL, %eax
    jmp *%eax

    .balign 8
descriptors:
    .quad 0, 0
    .quad 0x00cf9b000000ffff # code: 4 GB, executable
    .quad 0x00cf93000000ffff # data: 4 GB, writable
descriptors_register:
    .word 31
    .long ROM + descriptors - start

    .org 0xfff0 # where a processor begins
    .code16
    ljmp $ROM >> 4, $0
    .org 0x10000
