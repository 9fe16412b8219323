/* One instruction, measured and copied: its copy does what it does. Lines `ok` and `FAIL`. */
#include "check.h"
#include <sys/mman.h>

#define PAGE 4096

static PVOID elsewhere = F(check);

/* What is measured: the bytes, their length, where they lead from `code` on, and how many bytes the copy has more. */
static struct {
	const char *what;
	unsigned char code[16];
	int length;
	LONG_PTR leads;
	LONG extra;
} cases[] = {
#define NONE -1000
#define DYNAMIC -2000
#define SLOT -3000
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
	/* The slot is behind it, in the same line. */
	{"jmp [rip+2]", {0xff, 0x25, 2, 0, 0, 0}, 6, SLOT, 0},
	{"call [rip+2]", {0xff, 0x15, 2, 0, 0, 0}, 6, SLOT, 0},
	{"jmp rax", {0xff, 0xe0}, 2, DYNAMIC, 0},
	{"call [rax]", {0xff, 0x10}, 2, DYNAMIC, 0},
	{"jmp fs:[rip+2]", {0x64, 0xff, 0x25, 2, 0, 0, 0}, 7, DYNAMIC, 0},
	{"int3", {0xcc}, 1, DYNAMIC, 0},
	{"int 0x80", {0xcd, 0x80}, 2, DYNAMIC, 0},
	{"iretq", {0x48, 0xcf}, 2, DYNAMIC, 0},
};

static void measured(void)
{
	size_t i;

	for (i = 0; i < ARRAYSIZE(cases); i++) {
		/* Near the code, which is data here. */
		static unsigned char copy[40];
		unsigned char *code = cases[i].code;
		PVOID target = &i, wanted = code + cases[i].leads;
		LONG extra = 4242;

		if (cases[i].leads == NONE)
			wanted = DETOUR_INSTRUCTION_TARGET_NONE;
		if (cases[i].leads == DYNAMIC)
			wanted = DETOUR_INSTRUCTION_TARGET_DYNAMIC;
		if (cases[i].leads == SLOT) {
			memcpy(code + 8, &elsewhere, sizeof(elsewhere));
			wanted = elsewhere;
		}
		SetLastError(4242);
		check(DetourCopyInstruction(NULL, NULL, code, &target, &extra) == code + cases[i].length, cases[i].what);
		check(target == wanted, "where it leads");
		gives(extra, cases[i].extra, "how much longer its copy is");
		check(DetourCopyInstruction(NULL, NULL, code, NULL, NULL) == code + cases[i].length, "nobody asks");
		memset(copy, 0x5a, sizeof(copy));
		check(DetourCopyInstruction(copy + 1, NULL, code, &target, &extra) == code + cases[i].length && target == wanted,
		      "is copied");
		check(copy[0] == 0x5a && copy[1 + cases[i].length + cases[i].extra] == 0x5a, "no more than that is written");
		gives(GetLastError(), 4242, "which leaves the last error alone");
	}
}

/* A function with everything that depends on its address, and a counter of how often it was called in its helper. */
__asm__(".pushsection .text\n"
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
	"	ret\n"
	".popsection\n");
extern const unsigned char subject[], subject_end[];
int subject_called(int) __asm__("subject");
__attribute__((used, visibility("hidden"))) int number __asm__("number") = 7;
__attribute__((used)) static int calls;
__attribute__((used, noinline)) static int helper(int) __asm__("helper");
static int helper(int value)
{
	calls++;
	return value * 2;
}
__attribute__((used, noinline)) static void counts(void)
{
	calls += 100;
}
__attribute__((used, visibility("hidden"))) void (*pointer)(void) __asm__("pointer") = counts;

static void executed(void)
{
	DWORD size = 0;
	unsigned char *copy = DetourAllocateRegionWithinJumpBounds(subject, &size), *to = copy;
	PBYTE from = (PBYTE)subject;
	int (*copied)(int), lines = 0, of_original, called;

	check(copy != NULL, "memory near it");
	while (from && from < subject_end) {
		LONG extra = 0;
		PBYTE next = DetourCopyInstruction(to, NULL, from, NULL, &extra);

		if (!next)
			break;
		to += next - from + extra;
		from = next;
		lines++;
	}
	check(from == subject_end && lines == 20, "instruction by instruction");
	mprotect(copy, size, PROT_READ | PROT_EXEC);
	memcpy(&copied, &copy, sizeof(copied));
	of_original = subject_called(5);
	called = calls;
	calls = 0;
	check(copied(5) == of_original && of_original == 31 && calls == called && called == 101, "the copy does the same");
	check(copied(0) == 0 && subject_called(0) == 0, "on every way");
	number = 8;
	check(copied(5) == 0 && subject_called(5) == 0, "with the same data");
	check(VirtualFree(copy, 0, MEM_RELEASE), "it goes");
}

static void what_goes_wrong(void)
{
	static unsigned char jump[] = {0xe9, 0, 0, 0, 0}, wrong[] = {0x06, 0x90};
	unsigned char copy[16];
	unsigned char *pages = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), *far_away;
	PVOID target = &copy;
	LONG extra = 4242;

	check(!DetourCopyInstruction(NULL, NULL, NULL, &target, &extra), "nothing");
	leaves(ERROR_INVALID_DATA, "said so");
	check(target == DETOUR_INSTRUCTION_TARGET_NONE && !extra, "leads nowhere");
	check(!DetourCopyInstruction(NULL, NULL, (PVOID)16, NULL, NULL), "where nothing is mapped");
	leaves(ERROR_INVALID_ADDRESS, "said so");
	check(DetourCopyInstruction(copy, NULL, wrong, NULL, NULL) == wrong + 1 && copy[0] == 0x06, "no instruction: one byte");
	leaves(ERROR_INVALID_DATA, "said so");

	munmap(pages + PAGE, PAGE);
	pages[PAGE - 1] = 0xc3;
	check(DetourCopyInstruction(NULL, NULL, pages + PAGE - 1, NULL, NULL) == pages + PAGE, "the last byte that is mapped");
	pages[PAGE - 1] = 0xe9;
	check(DetourCopyInstruction(NULL, NULL, pages + PAGE - 1, NULL, NULL) == pages + PAGE, "half an instruction: one byte");
	leaves(ERROR_INVALID_DATA, "said so");

	far_away = mmap((PVOID)0x200000000ul, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	check(!DetourCopyInstruction(far_away, NULL, jump, &target, &extra), "too far for a jump");
	leaves(ERROR_INVALID_DATA, "said so");
	check(target == jump + 5 && !extra && !far_away[0], "nothing is written, and it is known where it leads");
	jump[0] = 0x55;
	check(DetourCopyInstruction(far_away, NULL, jump, NULL, NULL) == jump + 1 && far_away[0] == 0x55,
	      "what does not depend on its address goes anywhere");
	munmap(pages, PAGE);
	munmap(far_away, PAGE);
}

int main(void)
{
	measured();
	executed();
	what_goes_wrong();
	return failed;
}
