// SPDX-License-Identifier: MIT OR Apache-2.0
/*
 * udp SECONDS: datagrams over the loopback interface as fast as they go, each with a number and a sum that is looked at. Prints
 * `sent N received N`; ends with 1 if one came spoilt, or none at all. Those that found no room are lost, which UDP allows.
 */
#include <arpa/inet.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { WORDS = 128 };

static uint64_t mixed(uint64_t number, int word)
{
	return (number + (uint64_t)word) * 0x9e3779b97f4a7c15u;
}

static int is_whole(const uint64_t *words)
{
	int i;

	for (i = 1; i < WORDS; i++)
		if (words[i] != mixed(words[0], i))
			return 0;
	return 1;
}

static _Noreturn void die(const char *what)
{
	perror(what);
	exit(2);
}

static void send_all(const struct sockaddr_in *to, time_t seconds)
{
	int out = socket(AF_INET, SOCK_DGRAM, 0);
	uint64_t words[WORDS], sent = 0;
	time_t end = time(NULL) + seconds;
	int i;

	if (out < 0)
		die("socket");
	while (time(NULL) < end) {
		words[0] = sent;
		for (i = 1; i < WORDS; i++)
			words[i] = mixed(sent, i);
		if (sendto(out, words, sizeof(words), 0, (const struct sockaddr *)to, sizeof(*to)) == sizeof(words))
			sent++;
	}
	printf("sent %llu ", (unsigned long long)sent);
	fflush(stdout);
	exit(0);
}

int main(int count, char **arguments)
{
	struct sockaddr_in address = { .sin_family = AF_INET };
	socklen_t len = sizeof(address);
	int in = socket(AF_INET, SOCK_DGRAM, 0);
	unsigned long received = 0, spoilt = 0;
	struct pollfd waiting = { .fd = in, .events = POLLIN };
	uint64_t words[WORDS];
	pid_t child;

	address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	if (in < 0 || bind(in, (struct sockaddr *)&address, sizeof(address)) ||
	    getsockname(in, (struct sockaddr *)&address, &len))
		die("socket");
	child = fork();
	if (child < 0)
		die("fork");
	if (!child)
		send_all(&address, count > 1 ? atol(arguments[1]) : 1);
	/* A second without any: the sender has ended. */
	while (poll(&waiting, 1, 1000) > 0) {
		if (recv(in, words, sizeof(words), 0) != sizeof(words) || !is_whole(words))
			spoilt++;
		received++;
	}
	waitpid(child, NULL, 0);
	printf("received %lu spoilt %lu\n", received, spoilt);
	return spoilt || !received;
}
