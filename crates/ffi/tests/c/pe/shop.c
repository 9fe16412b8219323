/* A library for Windows, which a program on Linux loads by itself: see loaded.c. */
__declspec(dllimport) int price(int of);
__declspec(dllimport) int seventh(int of);

int stock = 5;

static int thrice(int of)
{
	return of * 3;
}

/* An address that the loader has to correct. */
static int (*volatile rule)(int) = thrice;

int treble(int of)
{
	return rule(of);
}

int buy(int of)
{
	return price(of) + 1;
}

int buy_seventh(int of)
{
	return seventh(of) + 1;
}

int start(void *module, unsigned int reason, void *reserved)
{
	(void)module, (void)reason, (void)reserved;
	return 1;
}
