/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * What Wine's driver host lacks of NT, for the suite windows-drivers: a DLL that drivers are given in place of ntoskrnl.exe and hal.dll. What is
 * not here is forwarded to Wine's own.
 *
 * Three processors are simulated, each of them a thread while it has something to do. Every thread has an interrupt request level and, as a
 * processor, a number; calls look whether the level is one at which they may be made, and say so: "KD: FAIL IRQL: ...". MDLs are true second
 * mappings of the same memory: text that is mapped for the first time becomes shared memory, read and executed where it was, and written
 * elsewhere; whoever wrote to where it was would be killed.
 */
#include <windows.h>
#include <winternl.h>
#include <stdio.h>

#define EXPORT __declspec(dllexport)
#define PROCESSORS 3

#define PASSIVE_LEVEL 0
#define APC_LEVEL 1
#define DISPATCH_LEVEL 2
#ifdef __x86_64__
#define IPI_LEVEL 14
#define HIGH_LEVEL 15
#else
#define IPI_LEVEL 29
#define HIGH_LEVEL 31
#endif

ULONG __cdecl DbgPrint(const char *format, ...);

/* This thread's level, and which processor it is on. */
static DWORD level_of_thread, processor_of_thread;

static BYTE level(void)
{
	return (BYTE)(ULONG_PTR)TlsGetValue(level_of_thread);
}

static void set_level(BYTE to)
{
	TlsSetValue(level_of_thread, (void *)(ULONG_PTR)to);
}

static void at_most(BYTE most, const char *call)
{
	if (level() > most)
		DbgPrint("KD: FAIL IRQL: %s at %d\n", call, level());
}

/* Linux's calls, of which Wine is a program: its own interface has no second mapping of an image's pages. */
#ifdef __x86_64__
enum { MMAP = 9, MUNMAP = 11, FTRUNCATE = 77, MEMFD_CREATE = 319 };

static LONG_PTR call(LONG_PTR number, LONG_PTR a, LONG_PTR b, LONG_PTR c, LONG_PTR d, LONG_PTR e, LONG_PTR f)
{
	register LONG_PTR r10 __asm__("r10") = d, r8 __asm__("r8") = e, r9 __asm__("r9") = f;
	LONG_PTR answer;

	__asm__ volatile ("syscall" : "=a"(answer) : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
			  : "rcx", "r11", "memory");
	return answer;
}
#else
enum { MMAP = 192, MUNMAP = 91, FTRUNCATE = 93, MEMFD_CREATE = 356 };

/* mmap2 has six arguments, the last in ebp. */
LONG_PTR call(LONG_PTR number, LONG_PTR a, LONG_PTR b, LONG_PTR c, LONG_PTR d, LONG_PTR e, LONG_PTR f);
__asm__(".text\n.globl _call\n_call:\n"
	"push %ebp\npush %edi\npush %esi\npush %ebx\n"
	"mov 20(%esp), %eax\nmov 24(%esp), %ebx\nmov 28(%esp), %ecx\nmov 32(%esp), %edx\n"
	"mov 36(%esp), %esi\nmov 40(%esp), %edi\nmov 44(%esp), %ebp\n"
	"int $0x80\n"
	"pop %ebx\npop %esi\npop %edi\npop %ebp\nret\n");
#endif

/* An error is one of the last 4095 numbers; in 32-bit code addresses may be negative, too. */
static int is_error(LONG_PTR answer)
{
	return answer < 0 && answer > -4096;
}

enum { READ = 1, WRITE = 2, EXECUTE = 4, SHARED = 1, PRIVATE = 2, AT_PLACE = 16, ANONYMOUS = 32, PAGE = 4096 };

/* Pages that are shared memory already, and the files that they are of. */
static struct {
	ULONG_PTR page;
	int file;
} shared[64];
static unsigned int shared_count;
static CRITICAL_SECTION sharing;

/* The file that a page of an image is of; -1 if it cannot be one. */
static int share(ULONG_PTR page)
{
	MEMORY_BASIC_INFORMATION information;
	unsigned int i;
	LONG_PTR copy, file;
	int protection;

	for (i = 0; i < shared_count; i++)
		if (shared[i].page == page)
			return shared[i].file;
	if (shared_count == sizeof(shared) / sizeof(*shared) || !VirtualQuery((void *)page, &information, sizeof(information)))
		return -1;
	switch (information.Protect) {
	case PAGE_EXECUTE_READ:
		protection = READ | EXECUTE;
		break;
	case PAGE_READONLY:
		protection = READ;
		break;
	default:
		DbgPrint("KD: FAIL mapping: %p has protection %lx\n", (void *)page, information.Protect);
		return -1;
	}
	file = call(MEMFD_CREATE, (LONG_PTR)"kdetour", 0, 0, 0, 0, 0);
	if (file < 0 || call(FTRUNCATE, file, PAGE, 0, 0, 0, 0) < 0)
		return -1;
	copy = call(MMAP, 0, PAGE, READ | WRITE, SHARED, file, 0);
	if (is_error(copy))
		return -1;
	memcpy((void *)copy, (void *)page, PAGE);
	call(MUNMAP, copy, PAGE, 0, 0, 0, 0);
	if (call(MMAP, page, PAGE, protection, SHARED | AT_PLACE, file, 0) != (LONG_PTR)page)
		return -1;
	shared[shared_count].page = page;
	shared[shared_count].file = (int)file;
	shared_count++;
	return (int)file;
}

/* MDL of wdm.h. */
struct mdl {
	struct mdl *next;
	short size, flags;
	void *process, *mapped, *start;
	ULONG count, offset;
};

EXPORT struct mdl *WINAPI IoAllocateMdl(void *address, ULONG length, BOOLEAN secondary, BOOLEAN charge, void *irp)
{
	struct mdl *mdl;

	at_most(DISPATCH_LEVEL, "IoAllocateMdl");
	if (secondary || charge || irp)
		return NULL;
	mdl = HeapAlloc(GetProcessHeap(), HEAP_ZERO_MEMORY, sizeof(*mdl));
	mdl->start = (void *)((ULONG_PTR)address & ~(ULONG_PTR)(PAGE - 1));
	mdl->offset = (ULONG_PTR)address & (PAGE - 1);
	mdl->count = length;
	return mdl;
}

EXPORT void WINAPI IoFreeMdl(struct mdl *mdl)
{
	at_most(DISPATCH_LEVEL, "IoFreeMdl");
	if (mdl->flags)
		DbgPrint("KD: FAIL mapping: freed while it is locked or mapped\n");
	HeapFree(GetProcessHeap(), 0, mdl);
}

enum { LOCKED = 2, MAPPED = 1 };

EXPORT void WINAPI MmProbeAndLockPages(struct mdl *mdl, char mode, int operation)
{
	at_most(APC_LEVEL, "MmProbeAndLockPages");
	/* For KernelMode. To write (1, 2) NT would not lock what is read-only. */
	if (mode != 0 || operation != 0)
		DbgPrint("KD: FAIL mapping: locked for mode %d, operation %d\n", mode, operation);
	mdl->flags |= LOCKED;
}

EXPORT void WINAPI MmUnlockPages(struct mdl *mdl)
{
	at_most(DISPATCH_LEVEL, "MmUnlockPages");
	if (mdl->flags != LOCKED)
		DbgPrint("KD: FAIL mapping: unlocked while it is mapped, or twice\n");
	mdl->flags &= ~LOCKED;
}

static ULONG_PTR pages_of(const struct mdl *mdl)
{
	return (mdl->offset + mdl->count + PAGE - 1) / PAGE;
}

EXPORT void *WINAPI MmMapLockedPagesSpecifyCache(struct mdl *mdl, char mode, int cache, void *at, ULONG bug_check, ULONG priority)
{
	LONG_PTR place;
	ULONG_PTR i;

	(void)priority;
	at_most(DISPATCH_LEVEL, "MmMapLockedPagesSpecifyCache");
	if (mode != 0 || cache != 1 || at || bug_check || mdl->flags != LOCKED)
		DbgPrint("KD: FAIL mapping: mode %d, cache %d, flags %d\n", mode, cache, mdl->flags);
	place = call(MMAP, 0, pages_of(mdl) * PAGE, 0, PRIVATE | ANONYMOUS, -1, 0);
	if (is_error(place))
		return NULL;
	EnterCriticalSection(&sharing);
	for (i = 0; i < pages_of(mdl); i++) {
		int file = share((ULONG_PTR)mdl->start + i * PAGE);

		if (file < 0 || is_error(call(MMAP, place + i * PAGE, PAGE, READ | WRITE, SHARED | AT_PLACE, file, 0))) {
			LeaveCriticalSection(&sharing);
			call(MUNMAP, place, pages_of(mdl) * PAGE, 0, 0, 0, 0);
			return NULL;
		}
	}
	LeaveCriticalSection(&sharing);
	mdl->flags |= MAPPED;
	mdl->mapped = (char *)place + mdl->offset;
	return mdl->mapped;
}

EXPORT void WINAPI MmUnmapLockedPages(void *address, struct mdl *mdl)
{
	at_most(DISPATCH_LEVEL, "MmUnmapLockedPages");
	if (address != mdl->mapped || !(mdl->flags & MAPPED))
		DbgPrint("KD: FAIL mapping: unmapped elsewhere\n");
	call(MUNMAP, (LONG_PTR)address - mdl->offset, pages_of(mdl) * PAGE, 0, 0, 0, 0);
	mdl->flags &= ~MAPPED;
}

EXPORT LONG WINAPI MmProtectMdlSystemAddress(struct mdl *mdl, ULONG protection)
{
	at_most(DISPATCH_LEVEL, "MmProtectMdlSystemAddress");
	return mdl->flags & MAPPED && protection == PAGE_READWRITE ? 0 : (LONG)0xc000000d;
}

EXPORT BOOLEAN WINAPI MmIsAddressValid(void *address)
{
	MEMORY_BASIC_INFORMATION information;

	at_most(DISPATCH_LEVEL, "MmIsAddressValid");
	return VirtualQuery(address, &information, sizeof(information)) && information.State == MEM_COMMIT &&
		!(information.Protect & (PAGE_NOACCESS | PAGE_GUARD));
}

/* Levels. */
static BYTE raise(BYTE to)
{
	BYTE now = level();

	if (to < now)
		DbgPrint("KD: FAIL IRQL: raised from %d to %d\n", now, to);
	set_level(to);
	return now;
}

static void lower(BYTE to)
{
	if (to > level())
		DbgPrint("KD: FAIL IRQL: lowered from %d to %d\n", level(), to);
	set_level(to);
}

#ifdef __x86_64__
EXPORT BYTE WINAPI KfRaiseIrql(BYTE to)
{
	return raise(to);
}

EXPORT void WINAPI KeLowerIrql(BYTE to)
{
	lower(to);
}
#else
EXPORT BYTE __fastcall KfRaiseIrql(BYTE to)
{
	return raise(to);
}

EXPORT void __fastcall KfLowerIrql(BYTE to)
{
	lower(to);
}

EXPORT void WINAPI KeRaiseIrql(BYTE to, BYTE *before)
{
	*before = raise(to);
}

EXPORT void WINAPI KeLowerIrql(BYTE to)
{
	lower(to);
}

EXPORT BYTE WINAPI KeGetCurrentIrql(void)
{
	return level();
}
#endif

/* Processors. */
struct job {
	volatile LONG queued;
	BYTE level;
	unsigned int processor;
	void (WINAPI *deferred)(void *, void *, void *, void *);
	void *dpc, *context, *one, *other;
	ULONG_PTR (WINAPI *broadcast)(ULONG_PTR);
	ULONG_PTR argument;
};

/* A processor that has something to do: at its level, and back to nothing. */
static DWORD WINAPI work(void *of)
{
	struct job *job = of;

	set_level(job->level);
	TlsSetValue(processor_of_thread, (void *)(ULONG_PTR)job->processor);
	if (job->broadcast)
		job->broadcast(job->argument);
	else if (InterlockedExchange(&job->queued, 0))
		job->deferred(job->dpc, job->context, job->one, job->other);
	if (level() != job->level)
		DbgPrint("KD: FAIL IRQL: a routine was called at %d and left %d\n", job->level, level());
	return 0;
}

EXPORT ULONG_PTR WINAPI KeIpiGenericCall(ULONG_PTR (WINAPI *routine)(ULONG_PTR), ULONG_PTR argument)
{
	HANDLE threads[PROCESSORS - 1];
	struct job jobs[PROCESSORS - 1];
	ULONG_PTR answer;
	unsigned int i;
	BYTE before;

	at_most(IPI_LEVEL - 1, "KeIpiGenericCall");
	for (i = 0; i < PROCESSORS - 1; i++) {
		ZeroMemory(&jobs[i], sizeof(jobs[i]));
		jobs[i].level = IPI_LEVEL;
		jobs[i].processor = i + 1;
		jobs[i].broadcast = routine;
		jobs[i].argument = argument;
		threads[i] = CreateThread(NULL, 0, work, &jobs[i], 0, NULL);
	}
	before = raise(IPI_LEVEL);
	answer = routine(argument);
	lower(before);
	for (i = 0; i < PROCESSORS - 1; i++) {
		WaitForSingleObject(threads[i], INFINITE);
		CloseHandle(threads[i]);
	}
	return answer;
}

/* KDPC of wdm.h. */
struct dpc {
	BYTE type, importance;
	unsigned short number;
	void *list[2];
	void (WINAPI *routine)(void *, void *, void *, void *);
	void *context, *one, *other;
	struct job *job;
};

EXPORT void WINAPI KeInitializeDpc(struct dpc *dpc, void (WINAPI *routine)(void *, void *, void *, void *), void *context)
{
	ZeroMemory(dpc, sizeof(*dpc));
	dpc->routine = routine;
	dpc->context = context;
}

EXPORT void WINAPI KeSetImportanceDpc(struct dpc *dpc, int importance)
{
	dpc->importance = (BYTE)importance;
}

EXPORT void WINAPI KeSetTargetProcessorDpc(struct dpc *dpc, char number)
{
	dpc->number = (unsigned short)(32 + number);
}

EXPORT BOOLEAN WINAPI KeInsertQueueDpc(struct dpc *dpc, void *one, void *other)
{
	struct job *job;
	unsigned int number = dpc->number - 32u;
	HANDLE thread;

	if (dpc->importance != 2 || number >= PROCESSORS || number == (ULONG_PTR)TlsGetValue(processor_of_thread))
		DbgPrint("KD: FAIL DPC: importance %d, processor %d\n", dpc->importance, number);
	if (level() != DISPATCH_LEVEL)
		DbgPrint("KD: FAIL DPC: queued at %d, where the caller may be on another processor by now\n", level());
	if (dpc->job && dpc->job->queued)
		return FALSE;
	/* It outlives the DPC: a driver may take one back whose processor comes late. */
	job = HeapAlloc(GetProcessHeap(), HEAP_ZERO_MEMORY, sizeof(*job));
	job->queued = 1;
	job->level = DISPATCH_LEVEL;
	job->processor = number;
	job->deferred = dpc->routine;
	job->dpc = dpc;
	job->context = dpc->context;
	job->one = one;
	job->other = other;
	dpc->job = job;
	thread = CreateThread(NULL, 0, work, job, 0, NULL);
	CloseHandle(thread);
	return TRUE;
}

EXPORT BOOLEAN WINAPI KeRemoveQueueDpc(struct dpc *dpc)
{
	return dpc->job && InterlockedExchange(&dpc->job->queued, 0);
}

EXPORT ULONG_PTR WINAPI KeQueryActiveProcessors(void)
{
	return (1u << PROCESSORS) - 1;
}

EXPORT void WINAPI KeSetSystemAffinityThread(ULONG_PTR affinity)
{
	ULONG_PTR number = 0;

	at_most(APC_LEVEL, "KeSetSystemAffinityThread");
	while (affinity && !(affinity >> number & 1))
		number++;
	TlsSetValue(processor_of_thread, (void *)number);
}

EXPORT void WINAPI KeRevertToUserAffinityThread(void)
{
	at_most(APC_LEVEL, "KeRevertToUserAffinityThread");
	TlsSetValue(processor_of_thread, NULL);
}

EXPORT LONG WINAPI KeSetPriorityThread(void *thread, LONG priority)
{
	(void)thread;
	(void)priority;
	return 8;
}

EXPORT LONG WINAPI KeQueryPriorityThread(void *thread)
{
	(void)thread;
	return 1;
}

/* Slower than true time: so a machine with too much to do is not taken for a processor that does not come. */
EXPORT LARGE_INTEGER WINAPI KeQueryPerformanceCounter(LARGE_INTEGER *frequency)
{
	LARGE_INTEGER now;

	if (frequency)
		QueryPerformanceFrequency(frequency);
	QueryPerformanceCounter(&now);
	now.QuadPart /= 50;
	return now;
}

/* A kernel debugger is there if the file C:\kdetour-debugger is: without one a kernel for x64 guards itself. */
EXPORT BOOLEAN WINAPI KdRefreshDebuggerNotPresent(void)
{
	return GetFileAttributesA("C:\\kdetour-debugger") == INVALID_FILE_ATTRIBUTES;
}

/* One entry of the list of loaded images (class 11 of ZwQuerySystemInformation). */
struct module {
	void *section, *mapped, *base;
	ULONG size, flags;
	unsigned short index, order, count, name;
	char path[256];
};

struct modules {
	ULONG_PTR count;
	struct module module[];
};

LONG WINAPI NtQuerySystemInformation(SYSTEM_INFORMATION_CLASS class, void *to, ULONG length, ULONG *needed);

/* What is loaded in this process; Wine's kernel first, as NT lists its own. */
EXPORT LONG WINAPI ZwQuerySystemInformation(ULONG class, void *to, ULONG length, ULONG *needed)
{
	LIST_ENTRY *head, *at;
	struct modules *modules = to;
	ULONG_PTR count = 0, room, first = 0;

	at_most(PASSIVE_LEVEL, "ZwQuerySystemInformation");
	if (class != 11)
		return NtQuerySystemInformation(class, to, length, needed);
	room = length < sizeof(*modules) ? 0 : (length - sizeof(*modules)) / sizeof(struct module);
	head = &NtCurrentTeb()->ProcessEnvironmentBlock->Ldr->InMemoryOrderModuleList;
	for (at = head->Flink; at != head; at = at->Flink, count++) {
		LDR_DATA_TABLE_ENTRY *entry = CONTAINING_RECORD(at, LDR_DATA_TABLE_ENTRY, InMemoryOrderLinks);
		IMAGE_NT_HEADERS *headers = (void *)((char *)entry->DllBase + ((IMAGE_DOS_HEADER *)entry->DllBase)->e_lfanew);
		struct module *module = &modules->module[count];

		if (count >= room)
			continue;
		ZeroMemory(module, sizeof(*module));
		module->base = entry->DllBase;
		module->size = headers->OptionalHeader.SizeOfImage;
		WideCharToMultiByte(CP_ACP, 0, entry->FullDllName.Buffer, -1, module->path, sizeof(module->path) - 1, NULL, NULL);
		module->name = (unsigned short)(strrchr(module->path, '\\') ? strrchr(module->path, '\\') + 1 - module->path : 0);
		if (!_stricmp(module->path + module->name, "ntoskrnl.exe"))
			first = count;
	}
	if (needed)
		*needed = (ULONG)(sizeof(*modules) + count * sizeof(struct module));
	if (count > room)
		return (LONG)0xc0000004;
	modules->count = count;
	if (count) {
		struct module kernel = modules->module[first];

		modules->module[first] = modules->module[0];
		modules->module[0] = kernel;
	}
	return 0;
}

void *WINAPI wine_MmGetSystemRoutineAddress(UNICODE_STRING *name);

/* What is here first; then what Wine's kernel has. */
EXPORT void *WINAPI MmGetSystemRoutineAddress(UNICODE_STRING *name)
{
	HMODULE self = GetModuleHandleA("kdntshim.exe"), kernel = GetModuleHandleA("ntoskrnl.exe"), hal = GetModuleHandleA("hal.dll");
	char text[128];
	void *found;
	int length;

	at_most(PASSIVE_LEVEL, "MmGetSystemRoutineAddress");
	length = WideCharToMultiByte(CP_ACP, 0, name->Buffer, name->Length / 2, text, sizeof(text) - 1, NULL, NULL);
	text[length] = 0;
	found = (void *)GetProcAddress(self, text);
	if (!found)
		found = (void *)GetProcAddress(kernel, text);
	if (!found && hal)
		found = (void *)GetProcAddress(hal, text);
	return found;
}

BOOL WINAPI DllMain(HINSTANCE self, DWORD reason, void *reserved)
{
	(void)self;
	(void)reserved;
	if (reason == DLL_PROCESS_ATTACH) {
		level_of_thread = TlsAlloc();
		processor_of_thread = TlsAlloc();
		InitializeCriticalSection(&sharing);
	}
	return TRUE;
}
