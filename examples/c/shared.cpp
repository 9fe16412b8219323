// A library for `kdetour run`: counts what the program allocates, and says so when it ends. C++.
// c++ -shared -fPIC -o count.so shared.cpp $(pkg-config --cflags --libs kdetour); kdetour run --with ./count.so -- ls
#include <kdetour.h>
#include <atomic>
#include <cstdlib>
#include <stdio.h>
#include <unistd.h>

static std::atomic<unsigned long> calls, bytes;

KDETOUR(malloc, void *, (size_t size), (size))
{
	calls.fetch_add(1, std::memory_order_relaxed);
	bytes.fetch_add(size, std::memory_order_relaxed);
	return malloc_original(size);
}

namespace {

struct Counting {
	// Programs such as ls close theirs before they end.
	const int out = dup(STDERR_FILENO);

	Counting()
	{
		struct kdetour_error error;
		struct kdetour *set[] = {&malloc_detour};

		if (kdetour_attach_all(set, 1, KDETOUR_EXCHANGE, &error))
			dprintf(out, "malloc is not counted: %s\n", error.text);
	}
	~Counting()
	{
		dprintf(out, "malloc was called %lu times, for %lu bytes\n", calls.load(), bytes.load());
	}
} counting;

}
