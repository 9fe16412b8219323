// SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0
/*
 * bpf FUNCTION COMMAND: attaches three BPF programs to a function of the kernel, one at its entry (fentry), one at its
 * return (fexit) and one by a kprobe; runs the command, and prints how often each was called meanwhile:
 *
 *	fentry 100 fexit 100 kprobe 100
 *
 * It needs no library: the programs are a handful of instructions, and the function's number is looked up in the
 * kernel's own type information.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <linux/perf_event.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

static void die(const char *what)
{
	fprintf(stderr, "bpf: %s: %s\n", what, strerror(errno));
	exit(1);
}

static int bpf(int command, union bpf_attr *attr)
{
	return syscall(SYS_bpf, command, attr, sizeof(*attr));
}

static char *read_all(const char *path, size_t *len)
{
	size_t room = 1 << 20;
	char *bytes = malloc(room);
	int file = open(path, O_RDONLY);
	ssize_t got;

	if (file < 0 || !bytes)
		die(path);
	for (*len = 0; (got = read(file, bytes + *len, room - *len)) > 0; *len += got)
		if (*len + got == room) {
			room *= 2;
			bytes = realloc(bytes, room);
			if (!bytes)
				die(path);
		}
	if (got < 0)
		die(path);
	close(file);
	return bytes;
}

/* Bytes behind the twelve of every entry: Documentation/bpf/btf.rst. */
static size_t rest_of(unsigned int kind, unsigned int members)
{
	switch (kind) {
	case 1: case 14: case 17: return 4;			/* INT, VAR, DECL_TAG */
	case 3: return 12;					/* ARRAY */
	case 4: case 5: case 15: case 19: return 12 * members;	/* STRUCT, UNION, DATASEC, ENUM64 */
	case 6: case 13: return 8 * members;			/* ENUM, FUNC_PROTO */
	default: return 0;
	}
}

static uint32_t number_of(const char *function)
{
	struct { uint16_t magic; uint8_t version, flags; uint32_t len, types, types_len, names, names_len; } head;
	size_t len;
	char *all = read_all("/sys/kernel/btf/vmlinux", &len), *at, *end;
	uint32_t id, entry[3];

	memcpy(&head, all, sizeof(head));
	if (head.magic != 0xeb9f) {
		errno = EINVAL;
		die("type information");
	}
	at = all + head.len + head.types;
	end = at + head.types_len;
	for (id = 1; at < end; id++) {
		unsigned int kind;

		memcpy(entry, at, sizeof(entry));
		kind = entry[1] >> 24 & 31;
		if (kind == 12 && !strcmp(all + head.len + head.names + entry[0], function))
			return id;
		at += sizeof(entry) + rest_of(kind, entry[1] & 0xffff);
	}
	errno = ENOENT;
	die(function);
	return 0;
}

static int make_counter(void)
{
	union bpf_attr attr = {
		.map_type = BPF_MAP_TYPE_ARRAY, .key_size = 4, .value_size = 8, .max_entries = 1,
	};
	int map = bpf(BPF_MAP_CREATE, &attr);

	if (map < 0)
		die("map");
	return map;
}

static uint64_t value_of(int map)
{
	uint64_t value = 0;
	uint32_t key = 0;
	union bpf_attr attr = { .map_fd = map, .key = (uint64_t)&key, .value = (uint64_t)&value };

	if (bpf(BPF_MAP_LOOKUP_ELEM, &attr))
		die("value");
	return value;
}

/* Adds one to the counter. */
static int load(int map, int type, int attach_type, uint32_t function)
{
	struct bpf_insn program[] = {
		{ .code = BPF_ST | BPF_MEM | BPF_W, .dst_reg = 10, .off = -4 },
		{ .code = BPF_ALU64 | BPF_MOV | BPF_X, .dst_reg = 2, .src_reg = 10 },
		{ .code = BPF_ALU64 | BPF_ADD | BPF_K, .dst_reg = 2, .imm = -4 },
		{ .code = BPF_LD | BPF_DW | BPF_IMM, .dst_reg = 1, .src_reg = BPF_PSEUDO_MAP_FD, .imm = map },
		{ },
		{ .code = BPF_JMP | BPF_CALL, .imm = BPF_FUNC_map_lookup_elem },
		{ .code = BPF_JMP | BPF_JEQ | BPF_K, .dst_reg = 0, .off = 2 },
		{ .code = BPF_ALU64 | BPF_MOV | BPF_K, .dst_reg = 1, .imm = 1 },
		{ .code = BPF_STX | BPF_ATOMIC | BPF_DW, .dst_reg = 0, .src_reg = 1, .imm = BPF_ADD },
		{ .code = BPF_ALU64 | BPF_MOV | BPF_K, .dst_reg = 0 },
		{ .code = BPF_JMP | BPF_EXIT },
	};
	static char log[4096];
	union bpf_attr attr = {
		.prog_type = type, .insns = (uint64_t)program, .insn_cnt = sizeof(program) / sizeof(program[0]),
		.license = (uint64_t)"GPL", .log_level = 1, .log_size = sizeof(log), .log_buf = (uint64_t)log,
		.expected_attach_type = attach_type, .attach_btf_id = function,
	};
	int loaded = bpf(BPF_PROG_LOAD, &attr);

	if (loaded < 0) {
		fputs(log, stderr);
		die("program");
	}
	return loaded;
}

static void trace(int map, int attach_type, uint32_t function)
{
	union bpf_attr attr = {
		.raw_tracepoint = { .prog_fd = load(map, BPF_PROG_TYPE_TRACING, attach_type, function) },
	};

	if (bpf(BPF_RAW_TRACEPOINT_OPEN, &attr) < 0)
		die(attach_type == BPF_TRACE_FENTRY ? "fentry" : "fexit");
}

static void probe(int map, const char *function)
{
	struct perf_event_attr attr = { .size = sizeof(attr), .kprobe_func = (uint64_t)function };
	size_t len;
	int event;

	attr.type = atoi(read_all("/sys/bus/event_source/devices/kprobe/type", &len));
	event = syscall(SYS_perf_event_open, &attr, -1, 0, -1, PERF_FLAG_FD_CLOEXEC);
	if (event < 0)
		die("kprobe");
	if (ioctl(event, PERF_EVENT_IOC_SET_BPF, load(map, BPF_PROG_TYPE_KPROBE, 0, 0)) ||
	    ioctl(event, PERF_EVENT_IOC_ENABLE, 0))
		die("kprobe's program");
}

int main(int count, char **arguments)
{
	int entries, returns, probes, result;
	uint32_t function;

	if (count != 3) {
		fprintf(stderr, "usage: bpf FUNCTION COMMAND\n");
		return 2;
	}
	function = number_of(arguments[1]);
	entries = make_counter();
	returns = make_counter();
	probes = make_counter();
	trace(entries, BPF_TRACE_FENTRY, function);
	trace(returns, BPF_TRACE_FEXIT, function);
	probe(probes, arguments[1]);
	result = system(arguments[2]);
	printf("fentry %llu fexit %llu kprobe %llu\n", (unsigned long long)value_of(entries),
	       (unsigned long long)value_of(returns), (unsigned long long)value_of(probes));
	return result != 0;
}
