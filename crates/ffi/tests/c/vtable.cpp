/* A virtual function of one class leads to a detour, and that of another class does not. Lines `ok` and `FAIL`. */
#include <kdetour.h>
#include <cstdio>
#include <cstring>

struct Shape {
	virtual ~Shape() {}
	virtual int corners() const = 0;
	virtual int sides() const { return corners(); }
};

struct Triangle : Shape {
	virtual int corners() const { return 3; }
};

struct Square : Shape {
	virtual int corners() const { return 4; }
};

static int failed;

static void check(bool holds, const char *what)
{
	std::printf("%s %s\n", holds ? "ok" : "FAIL", what);
	failed |= !holds;
}

/* So that the compiler does not know whose virtual function it is. */
static Shape *volatile shapes[] = { new Triangle, new Triangle, new Square };

static void *original;

/* A virtual function is called with the object as its first argument. */
static int one_more(const Shape *shape)
{
	int (*corners)(const Shape *);
	void *now = *(void *volatile *)&original;

	std::memcpy(&corners, &now, sizeof(corners));
	return corners(shape) + 1;
}

int main()
{
	/* Behind the two destructors: the object begins with the address of its class's table. */
	void **place = *reinterpret_cast<void ***>(shapes[0]) + 2;
	int (*detour)(const Shape *) = one_more;
	struct kdetour one;
	struct kdetour *const set[] = { &one };
	struct kdetour_error error;

	std::memset(&one, 0, sizeof(one));
	one.method = KDETOUR_POINTER;
	one.target = place;
	std::memcpy(&one.detour, &detour, sizeof(detour));
	one.original = &original;
	check(shapes[0]->corners() == 3 && shapes[2]->corners() == 4, "as they are");
	check(!kdetour_attach_all(set, 1, KDETOUR_EXCHANGE, &error), "attached");
	check(shapes[0]->corners() == 4 && shapes[1]->sides() == 4, "every object of the class comes to the detour");
	check(shapes[2]->corners() == 4 && shapes[2]->sides() == 4, "other classes do not");
	check(!kdetour_detach(&one) && shapes[0]->corners() == 3 && shapes[1]->sides() == 3, "as they were");
	return failed;
}
