// SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0
/* A second copy: an object belongs to one module only. */
#include "functions.c"
