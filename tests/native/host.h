// What differs between 64-bit and 32-bit: system calls, signal frames, and the call itself.

void invoke(void);
void invoke_back(void);
void recover(void);
void restorer(void);
void on_signal(int signal, int *info, word *context);
int start(word *stack);

enum { PROT_RWX = 7, MAP_PRIVATE_FIXED_ANON = 0x100022 }; // MAP_FIXED_NOREPLACE

#ifdef __x86_64__

enum { SYS_read = 0, SYS_write = 1, SYS_open = 2, SYS_lseek = 8, SYS_mmap = 9, SYS_munmap = 11, SYS_rt_sigaction = 13,
	SYS_setitimer = 38, SYS_exit = 60, SYS_sigaltstack = 131, SYS_arch_prctl = 158 };
// struct ucontext as words: flags, link, three of the stack, then struct sigcontext.
enum { CONTEXT_SP = 5 + 15, CONTEXT_IP = 5 + 16, CONTEXT_FLAGS = 5 + 17 };
enum { FX_LEN = 416 };

static word system6(word number, word a, word b, word c, word d, word e, word f)
{
	register word r10 __asm__("r10") = d;
	register word r8 __asm__("r8") = e;
	register word r9 __asm__("r9") = f;
	word result;

	__asm__ volatile("syscall" : "=a"(result) : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
		: "rcx", "r11", "memory");
	return result;
}

// All registers from `in`, a jump to case_target; it returns to invoke_back, which stores them to `out`. The runner
// lies below 2 GiB, so absolute addresses need no register. MOV changes no flag.
__asm__(
".text\n"
".globl _start\n_start:\n"
"	mov %rsp, %rdi\n"
"	and $-16, %rsp\n"
"	call start\n"
"	mov %eax, %edi\n"
"	mov $60, %eax\n"
"	syscall\n"
".globl restorer\nrestorer:\n"
"	mov $15, %eax\n"
"	syscall\n"
".globl invoke\ninvoke:\n"
"	push %rbx\n	push %rbp\n	push %r12\n	push %r13\n	push %r14\n	push %r15\n"
"	mov %rsp, host_stack\n"
"	fxrstor in+144\n"
"	pushq in+128\n"
"	popfq\n"
"	mov case_stack, %rsp\n"
"	mov in+0, %rax\n	mov in+8, %rcx\n	mov in+16, %rdx\n	mov in+24, %rbx\n"
"	mov in+40, %rbp\n	mov in+48, %rsi\n	mov in+56, %rdi\n"
"	mov in+64, %r8\n	mov in+72, %r9\n	mov in+80, %r10\n	mov in+88, %r11\n"
"	mov in+96, %r12\n	mov in+104, %r13\n	mov in+112, %r14\n	mov in+120, %r15\n"
"	jmp *case_target\n"
".globl invoke_back\ninvoke_back:\n"
"	mov %rax, out+0\n	mov %rcx, out+8\n	mov %rdx, out+16\n	mov %rbx, out+24\n"
"	mov %rsp, out+32\n	mov %rbp, out+40\n	mov %rsi, out+48\n	mov %rdi, out+56\n"
"	mov %r8, out+64\n	mov %r9, out+72\n	mov %r10, out+80\n	mov %r11, out+88\n"
"	mov %r12, out+96\n	mov %r13, out+104\n	mov %r14, out+112\n	mov %r15, out+120\n"
"	mov host_stack, %rsp\n"
"	pushfq\n"
"	popq out+128\n"
"	fxsave out+144\n"
".globl recover\nrecover:\n"
"	cld\n"
"	mov host_stack, %rsp\n"
"	pop %r15\n	pop %r14\n	pop %r13\n	pop %r12\n	pop %rbp\n	pop %rbx\n"
"	ret\n");

static void set_segments(word base)
{
	system6(SYS_arch_prctl, 0x1002, base, 0, 0, 0, 0);         // ARCH_SET_FS
	system6(SYS_arch_prctl, 0x1001, base + 0x100, 0, 0, 0, 0); // ARCH_SET_GS
}

#else

enum { SYS_exit = 1, SYS_read = 3, SYS_write = 4, SYS_open = 5, SYS_lseek = 19, SYS_munmap = 91, SYS_setitimer = 104,
	SYS_rt_sigaction = 174, SYS_sigaltstack = 186, SYS_mmap = 192, SYS_set_thread_area = 243 };
// struct ucontext as words: flags, link, three of the stack, then struct sigcontext.
enum { CONTEXT_SP = 5 + 7, CONTEXT_IP = 5 + 14, CONTEXT_FLAGS = 5 + 16 };
enum { FX_LEN = 288 };

word system6_args[7];
word system6_raw(void);
__asm__(
".text\n"
"system6_raw:\n"
"	push %ebx\n	push %esi\n	push %edi\n	push %ebp\n"
"	mov system6_args, %eax\n	mov system6_args+4, %ebx\n	mov system6_args+8, %ecx\n	mov system6_args+12, %edx\n"
"	mov system6_args+16, %esi\n	mov system6_args+20, %edi\n	mov system6_args+24, %ebp\n"
"	int $0x80\n"
"	pop %ebp\n	pop %edi\n	pop %esi\n	pop %ebx\n"
"	ret\n"
".globl _start\n_start:\n"
"	mov %esp, %eax\n"
"	and $-16, %esp\n"
"	sub $12, %esp\n"
"	push %eax\n"
"	call start\n"
"	mov %eax, %ebx\n"
"	mov $1, %eax\n"
"	int $0x80\n"
".globl restorer\nrestorer:\n"
"	mov $173, %eax\n"
"	int $0x80\n"
".globl invoke\ninvoke:\n"
"	push %ebx\n	push %ebp\n	push %esi\n	push %edi\n"
"	mov %esp, host_stack\n"
"	fxrstor in+80\n"
"	pushl in+64\n"
"	popfl\n"
"	mov case_stack, %esp\n"
"	mov in+0, %eax\n	mov in+4, %ecx\n	mov in+8, %edx\n	mov in+12, %ebx\n"
"	mov in+20, %ebp\n	mov in+24, %esi\n	mov in+28, %edi\n"
"	jmp *case_target\n"
".globl invoke_back\ninvoke_back:\n"
"	mov %eax, out+0\n	mov %ecx, out+4\n	mov %edx, out+8\n	mov %ebx, out+12\n"
"	mov %esp, out+16\n	mov %ebp, out+20\n	mov %esi, out+24\n	mov %edi, out+28\n"
"	mov host_stack, %esp\n"
"	pushfl\n"
"	popl out+64\n"
"	fxsave out+80\n"
".globl recover\nrecover:\n"
"	cld\n"
"	mov host_stack, %esp\n"
"	pop %edi\n	pop %esi\n	pop %ebp\n	pop %ebx\n"
"	ret\n");

static word system6(word number, word a, word b, word c, word d, word e, word f)
{
	word args[7] = { number, a, b, c, d, e, f };

	for (int i = 0; i < 7; i++)
		((volatile word *)system6_args)[i] = args[i];
	return system6_raw();
}

static void set_segments(word base)
{
	static u32 entry[4] = { ~0u, 0, 0xfffff, 0x51 }; // 32-bit, limit in pages, usable

	entry[1] = base;
	system6(SYS_set_thread_area, (word)entry, 0, 0, 0, 0, 0);
	__asm__ volatile("mov %0, %%gs\n	mov %0, %%fs" : : "r"(entry[0] * 8 + 3));
}

#endif

static word system3(word number, word a, word b, word c)
{
	return system6(number, a, b, c, 0, 0, 0);
}

static word map(word address, word len)
{
	return system6(SYS_mmap, address, len, PROT_RWX, MAP_PRIVATE_FIXED_ANON, (word)-1, 0);
}

static u8 *read_file(const char *path, word *len)
{
	word file = system3(SYS_open, (word)path, 0, 0);
	word bytes = system3(SYS_lseek, file, 0, 2);
	word at = system6(SYS_mmap, 0, bytes, 1, 2, file, 0); // PROT_READ, MAP_PRIVATE

	*len = bytes;
	return at < (word)-4096 ? (u8 *)at : 0;
}

static void set_alarm(word seconds)
{
	word timer[4] = { 0, 0, seconds, 0 };

	system3(SYS_setitimer, 0, (word)timer, 0);
}

static void take_signals(void)
{
	static u8 stack[65536] __attribute__((aligned(64)));
	static const int signals[] = { 4, 5, 7, 8, 11, 14 }; // ILL TRAP BUS FPE SEGV ALRM
	word alternate[3] = { (word)stack, 0, sizeof(stack) };
	// SA_SIGINFO, SA_RESTORER, SA_ONSTACK, SA_NODEFER
	word action[5] = { (word)on_signal, 0x4c000004, (word)restorer, 0, 0 };

	system3(SYS_sigaltstack, (word)alternate, 0, 0);
	for (word i = 0; i < sizeof(signals) / sizeof(*signals); i++)
		system6(SYS_rt_sigaction, (word)signals[i], (word)action, 0, 8, 0, 0);
}

extern word detour_count, detour_save;

// Counts and jumps to the trampoline, with no flag and no stack touched.
static void write_detour(u8 *at, word trampoline)
{
	struct { u8 opcode; word *address; } parts[] = {
		{ 0xa3, &detour_save }, { 0xa1, &detour_count }, { 0, 0 }, { 0xa3, &detour_count }, { 0xa1, &detour_save },
	};

	for (int i = 0; i < 5; i++) {
		if (sizeof(word) == 8)
			*at++ = 0x48;
		if (parts[i].opcode) {
			*at++ = parts[i].opcode; // mov [moffs], ax or mov ax, [moffs]
			*(word *)at = (word)parts[i].address;
			at += sizeof(word);
		} else {
			*at++ = 0x8d; // lea ax, [ax+1]
			*at++ = 0x40;
			*at++ = 1;
		}
	}
	if (sizeof(word) == 8) {
		static const u8 jump[] = { 0xff, 0x25, 0, 0, 0, 0 }; // jmp [rip+0]

		for (int i = 0; i < 6; i++)
			*at++ = jump[i];
		*(word *)at = trampoline;
	} else {
		*at++ = 0xe9; // jmp rel32
		*(word *)at = trampoline - (word)at - 4;
	}
}

// An image for FXRSTOR with something in every register.
static void make_fx(u8 *fx)
{
	for (int i = 0; i < 512; i++)
		fx[i] = 0;
	fx[0] = 0x7f; // FCW
	fx[1] = 3;
	fx[24] = 0x80; // MXCSR
	fx[25] = 0x1f;
	for (int i = 160; i < FX_LEN; i++)
		fx[i] = (u8)(i * 37 + 11);
}
