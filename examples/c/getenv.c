/* What the program asks of its environment, told on the way. cc getenv.c $(pkg-config --cflags --libs kdetour) */
#include <kdetour.h>
#include <stdio.h>
#include <stdlib.h>

KDETOUR(getenv, char *, (const char *name), (name))
{
	char *value = getenv_original(name);

	printf("getenv(\"%s\") is %s\n", name, value ? value : "not there");
	return value;
}

int main(void)
{
	if (kdetour_attach(&getenv_detour))
		return 1;
	getenv("HOME");
	return kdetour_detach(&getenv_detour) != 0;
}
