//! Methods as numbers: `enum kdetour_method` of `kdetour.h`.

use kdetour::Method;

/// The method of a number; none if there is none.
pub(crate) const fn of(number: i32) -> Option<Method> {
    match number {
        0 => Some(Method::Jump),
        1 => Some(Method::Pointer),
        2 => Some(Method::Breakpoint),
        3 => Some(Method::DebugRegister),
        _ => None,
    }
}

/// The number of a method.
#[cfg(any(feature = "linux-kernel", test))]
pub(crate) const fn number(method: Method) -> i32 {
    match method {
        Method::Pointer => 1,
        Method::Breakpoint => 2,
        Method::DebugRegister => 3,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;

    /// The header and this file must agree.
    #[test]
    fn the_header_has_the_same_numbers() {
        let header = include_str!("../include/kdetour.h");
        let all = [
            ("JUMP", Method::Jump),
            ("POINTER", Method::Pointer),
            ("INT3", Method::Breakpoint),
            ("DEBUG_REGISTER", Method::DebugRegister),
        ];
        for (name, method) in all {
            let enumerator = std::format!("KDETOUR_{name} = {}", number(method));
            assert!(header.contains(&enumerator), "kdetour.h should say: {enumerator}");
            assert_eq!(of(number(method)), Some(method));
        }
        assert_eq!((of(-1), of(4)), (None, None));
    }
}
