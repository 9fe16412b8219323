// SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0
/* A second copy of kdetour.ko's way to functions that are not exported, so that textsum needs no kdetour.ko. */
#include "../lookup.c"
#include "../host.c"
#include "../stats.c"
#include "../thunks.c"
