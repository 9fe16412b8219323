//! Function pointers of every signature.

use core::{mem, ptr};

/// A function pointer: `fn`, `extern "C" fn`, `extern "C-unwind" fn` or `extern "system" fn`, safe or `unsafe`, of up to twelve arguments;
/// on x86-64 also `extern "win64" fn` and `extern "sysv64" fn`, on x86-32 `extern "stdcall" fn`, `extern "fastcall" fn` and
/// `extern "thiscall" fn`.
///
/// A function whose arguments hold references of any lifetime, `for<'a> fn(&'a str)`, is no such type; with pointers
/// in their place it is. One with variable arguments is detoured as one with as many arguments as its callers give.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a function pointer that can be detoured",
    label = "give a function pointer",
    note = "a function itself is none: cast it, `f as extern \"C\" fn(i32) -> i32`",
    note = "take pointers in place of references, at most twelve arguments, and an ABI of those that `Function` lists"
)]
pub trait Function: Copy + sealed::Pointer {
    /// Where its code begins.
    fn address(self) -> u64;
}

impl<F: sealed::Pointer> Function for F {
    fn address(self) -> u64 {
        self.as_pointer().expose_provenance() as u64
    }
}

pub(crate) mod sealed {
    /// What only a function pointer can do.
    pub trait Pointer: Copy + Send + Sync + 'static {
        /// The function's code.
        fn as_pointer(self) -> *const ();

        /// The function at an address.
        ///
        /// # Safety
        /// A function of this type is there, and stays there.
        unsafe fn from_address(address: u64) -> Self;
    }
}

macro_rules! pointer {
    ($function:ty, $($argument:ident)*) => {
        impl<Return: 'static, $($argument: 'static),*> sealed::Pointer for $function {
            fn as_pointer(self) -> *const () {
                self as *const ()
            }

            unsafe fn from_address(address: u64) -> Self {
                let pointer = ptr::with_exposed_provenance::<()>(address as usize);
                // SAFETY: function pointers are pointers to code in size and form, and the caller promises that a
                // function of this type is there.
                unsafe { mem::transmute::<*const (), Self>(pointer) }
            }
        }
    };
}

/// All kinds of functions with these arguments, then with one fewer.
macro_rules! pointers {
    (@kinds $($argument:ident)*) => {
        pointer!(fn($($argument),*) -> Return, $($argument)*);
        pointer!(unsafe fn($($argument),*) -> Return, $($argument)*);
        pointer!(extern "C" fn($($argument),*) -> Return, $($argument)*);
        pointer!(unsafe extern "C" fn($($argument),*) -> Return, $($argument)*);
        pointer!(extern "C-unwind" fn($($argument),*) -> Return, $($argument)*);
        pointer!(unsafe extern "C-unwind" fn($($argument),*) -> Return, $($argument)*);
        pointer!(extern "system" fn($($argument),*) -> Return, $($argument)*);
        pointer!(unsafe extern "system" fn($($argument),*) -> Return, $($argument)*);
        pointers!(@abi "x86_64" "win64" $($argument)*);
        pointers!(@abi "x86_64" "sysv64" $($argument)*);
        pointers!(@abi "x86" "stdcall" $($argument)*);
        pointers!(@abi "x86" "fastcall" $($argument)*);
        pointers!(@abi "x86" "thiscall" $($argument)*);
    };
    (@abi $processor:literal $abi:literal $($argument:ident)*) => {
        #[cfg(target_arch = $processor)]
        pointer!(extern $abi fn($($argument),*) -> Return, $($argument)*);
        #[cfg(target_arch = $processor)]
        pointer!(unsafe extern $abi fn($($argument),*) -> Return, $($argument)*);
    };
    () => {
        pointers!(@kinds);
    };
    ($first:ident $($rest:ident)*) => {
        pointers!(@kinds $first $($rest)*);
        pointers!($($rest)*);
    };
}

pointers!(A B C D E F G H I J K L);
