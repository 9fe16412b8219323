/* What instruction.c measures and executes, in 64-bit code. */

static struct measured cases[] = {
	{"push rbp", {0x55, 0xcc}, 1, NONE, 0},
	{"mov rax, imm64", {0x48, 0xb8, 1, 2, 3, 4, 5, 6, 7, 8}, 10, NONE, 0},
	{"lea rax, [rip+8]", {0x48, 0x8d, 0x05, 8, 0, 0, 0}, 7, NONE, 0},
	{"ret", {0xc3}, 1, NONE, 0},
	{"ret 8", {0xc2, 8, 0}, 3, NONE, 0},
	{"endbr64", {0xf3, 0x0f, 0x1e, 0xfa}, 4, NONE, 0},
	{"syscall", {0x0f, 0x05}, 2, NONE, 0},
	{"jmp short", {0xeb, 0x10}, 2, 0x12, 3},
	{"jmp near", {0xe9, 0, 1, 0, 0}, 5, 0x105, 0},
	{"je short, back", {0x74, 0xfe}, 2, 0, 4},
	{"jne near", {0x0f, 0x85, 0, 1, 0, 0}, 6, 0x106, 0},
	{"call", {0xe8, 0, 1, 0, 0}, 5, 0x105, 0},
	{"loop", {0xe2, 0x10}, 2, 0x12, 7},
	{"jrcxz", {0xe3, 0x10}, 2, 0x12, 7},
	{"jmp [rip+2]", {0xff, 0x25, 2, 0, 0, 0}, 6, SLOT, 0},
	{"call [rip+2]", {0xff, 0x15, 2, 0, 0, 0}, 6, SLOT, 0},
	{"jmp rax", {0xff, 0xe0}, 2, DYNAMIC, 0},
	{"call [rax]", {0xff, 0x10}, 2, DYNAMIC, 0},
	{"jmp fs:[rip+2]", {0x64, 0xff, 0x25, 2, 0, 0, 0}, 7, DYNAMIC, 0},
	{"int3", {0xcc}, 1, DYNAMIC, 0},
	{"int 0x80", {0xcd, 0x80}, 2, DYNAMIC, 0},
	{"iretq", {0x48, 0xcf}, 2, DYNAMIC, 0},
};

/* The slot that the bytes name already. */
static void names_slot(unsigned char *code, const void *slot)
{
	check(code + 8 == slot, "the slot is behind it, in the same line");
}

/* A function with everything that depends on its address. */
__asm__(".text\n"
	".globl subject, subject_end\n"
	"subject:\n"
	"	push %rbx\n"
	"	mov %edi, %ebx\n"
	"	test %edi, %edi\n"
	"	je 1f\n"
	"	mov number(%rip), %eax\n"
	"	add %eax, %ebx\n"
	"	cmpl $7, number(%rip)\n"
	"	jne 1f\n"
	"	mov %ebx, %edi\n"
	"	call helper\n"
	"	mov %eax, %ebx\n"
	"	call *pointer(%rip)\n"
	"	lea number(%rip), %rcx\n"
	"	add (%rcx), %ebx\n"
	"	mov $1, %ecx\n"
	"	jrcxz 1f\n"
	"	jmp 2f\n"
	"2:	mov %ebx, %eax\n"
	"	pop %rbx\n"
	"	ret\n"
	"subject_end:\n"
	"1:	xor %eax, %eax\n"
	"	pop %rbx\n"
	"	ret\n");
#define LINES 20

/* The code names them by their distance. */
#ifdef _WIN32
#define HIDDEN
#else
#define HIDDEN __attribute__((visibility("hidden")))
#endif
__attribute__((used)) HIDDEN int number __asm__("number") = 7;
__attribute__((used)) HIDDEN CALLED void (*pointer)(void) __asm__("pointer") = counts;

static int call(const void *code, int argument)
{
	CALLED int (*function)(int);

	memcpy(&function, &code, sizeof(code));
	return function(argument);
}
