/* A library that is loaded first (LD_PRELOAD) and has a function of the C library's: for imports.c. */
int getppid(void);

int getppid(void)
{
	return 4711;
}
