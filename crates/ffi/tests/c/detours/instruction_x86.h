/* What instruction.c measures and executes, in 32-bit code. */

static struct measured cases[] = {
	{"push ebp", {0x55, 0xcc}, 1, NONE, 0},
	{"inc eax", {0x40}, 1, NONE, 0},
	{"mov eax, imm32", {0xb8, 1, 2, 3, 4}, 5, NONE, 0},
	{"mov eax, [disp32]", {0xa1, 1, 2, 3, 4}, 5, NONE, 0},
	{"lea eax, [disp32]", {0x8d, 0x05, 8, 0, 0, 0}, 6, NONE, 0},
	{"ret", {0xc3}, 1, NONE, 0},
	{"ret 8", {0xc2, 8, 0}, 3, NONE, 0},
	{"endbr32", {0xf3, 0x0f, 0x1e, 0xfb}, 4, NONE, 0},
	{"jmp short", {0xeb, 0x10}, 2, 0x12, 3},
	{"jmp near", {0xe9, 0, 1, 0, 0}, 5, 0x105, 0},
	{"je short, back", {0x74, 0xfe}, 2, 0, 4},
	{"jne near", {0x0f, 0x85, 0, 1, 0, 0}, 6, 0x106, 0},
	{"call", {0xe8, 0, 1, 0, 0}, 5, 0x105, 0},
	{"loop", {0xe2, 0x10}, 2, 0x12, 7},
	{"jecxz", {0xe3, 0x10}, 2, 0x12, 7},
	{"jmp [disp32]", {0xff, 0x25}, 6, SLOT, 0},
	{"call [disp32]", {0xff, 0x15}, 6, SLOT, 0},
	{"jmp eax", {0xff, 0xe0}, 2, DYNAMIC, 0},
	{"call [eax]", {0xff, 0x10}, 2, DYNAMIC, 0},
	{"jmp gs:[disp32]", {0x65, 0xff, 0x25, 2, 0, 0, 0}, 7, DYNAMIC, 0},
	{"int3", {0xcc}, 1, DYNAMIC, 0},
	{"int 0x80", {0xcd, 0x80}, 2, DYNAMIC, 0},
	{"iretd", {0xcf}, 1, DYNAMIC, 0},
};

/* An address of 32 bits, behind opcode and ModRM. */
static void names_slot(unsigned char *code, const void *slot)
{
	memcpy(code + 2, &slot, sizeof(slot));
}

static struct {
	int number;
	void (*pointer)(void);
} data = {7, counts};
#define number data.number

/* A function with everything that depends on its address. Its second argument is where `data` is. */
__asm__(".text\n"
	".globl subject, subject_end\n"
	"subject:\n"
	"	push %ebx\n"
	"	push %esi\n"
	"	mov 12(%esp), %ebx\n"
	"	mov 16(%esp), %esi\n"
	"	test %ebx, %ebx\n"
	"	je 1f\n"
	"	add (%esi), %ebx\n"
	"	cmpl $7, (%esi)\n"
	"	jne 1f\n"
	"	push %ebx\n"
	"	call helper\n"
	"	pop %ecx\n"
	"	mov %eax, %ebx\n"
	"	call *4(%esi)\n"
	"	add (%esi), %ebx\n"
	"	mov $1, %ecx\n"
	"	jecxz 1f\n"
	"	jmp 2f\n"
	"2:	mov %ebx, %eax\n"
	"	pop %esi\n"
	"	pop %ebx\n"
	"	ret\n"
	"subject_end:\n"
	"1:	xor %eax, %eax\n"
	"	pop %esi\n"
	"	pop %ebx\n"
	"	ret\n");
#define LINES 22

static int call(const void *code, int argument)
{
	int (*function)(int, void *);

	memcpy(&function, &code, sizeof(code));
	return function(argument, &data);
}
