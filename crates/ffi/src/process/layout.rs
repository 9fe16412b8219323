//! Tests: what C sees is what Rust means. A C compiler lays the structs out, and is told the functions' types.

use super::*;
use core::mem::offset_of;
use std::format;
use std::path::PathBuf;
use std::process::Command;
use std::string::String;

/// Compiles lines of C behind the header; what the compiler says if it does not like them.
fn compile(name: &str, lines: &str) -> Result<(), String> {
    let folder = std::env::temp_dir().join(format!("kdetour-layout-{}-{name}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let source = folder.join("layout.c");
    std::fs::write(&source, format!("#include <kdetour.h>\n{lines}\n")).unwrap();
    let include = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("include");
    // As the library is compiled, so is the header.
    let bits = if cfg!(target_pointer_width = "32") { "-m32" } else { "-m64" };
    let output = Command::new("cc")
        .arg(bits)
        .args(["-std=c11", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", "-I"])
        .arg(include)
        .arg(&source)
        .output()
        .unwrap();
    std::fs::remove_dir_all(&folder).unwrap();
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
}

#[test]
fn structs_are_laid_out_alike() {
    let mut lines = String::new();
    let mut place = |of: &str, field: &str, offset: usize| {
        lines += &format!("_Static_assert(offsetof(struct {of}, {field}) == {offset}, \"{of}.{field}\");\n");
    };
    macro_rules! places {
        ($of:literal, $type:ty, $($field:ident),+) => { $(place($of, stringify!($field), offset_of!($type, $field));)+ };
    }
    places!("kdetour", Detour, symbol, target, detour, original, method, handle);
    places!("kdetour_error", ErrorRecord, code, index, address, text);
    places!(
        "kdetour_patch",
        PatchRecord,
        address,
        trampoline,
        detour,
        resume,
        boundary,
        shape,
        length,
        expected_length,
        boundary_count,
        expected,
        patched
    );
    for (of, size) in [
        ("kdetour", size_of::<Detour>()),
        ("kdetour_error", size_of::<ErrorRecord>()),
        ("kdetour_patch", size_of::<PatchRecord>()),
    ] {
        lines += &format!("_Static_assert(sizeof(struct {of}) == {size}, \"{of}\");\n");
    }
    compile("structs", &lines).unwrap();
    compile("wrong", "_Static_assert(sizeof(struct kdetour) == 1, \"\");").unwrap_err();
}

/// Both sides are written down here: whoever changes one has to change the other.
#[test]
fn functions_have_the_same_types() {
    let _: unsafe extern "C" fn(*const *mut Detour, c_uint, c_int, *mut ErrorRecord) -> c_int =
        kdetour_attach_all;
    let _: unsafe extern "C" fn(*const *mut Detour, c_uint, c_int, c_uint, *mut ErrorRecord) -> c_int =
        kdetour_detach_all;
    let _: unsafe extern "C" fn(*const c_char) -> *mut c_void = kdetour_find;
    let _: unsafe extern "C" fn(*const c_void, *mut c_char, usize) -> usize = kdetour_survey;
    let _: unsafe extern "C" fn(*const c_char, *const c_char, c_uint, *mut ErrorRecord) -> *mut *mut c_void =
        kdetour_import;
    let _: unsafe extern "C" fn(
        *const c_void,
        *const c_char,
        *const c_char,
        c_uint,
        *mut ErrorRecord,
    ) -> *mut *mut c_void = kdetour_pe_import;
    let _: unsafe extern "C" fn(*const c_void, *const c_char, *mut ErrorRecord) -> *mut *mut c_void =
        kdetour_pe_export;
    let _: unsafe extern "C" fn(*mut *mut c_void, *mut ErrorRecord) -> c_int = kdetour_pe_restore;
    let _: unsafe extern "C" fn(*mut Detour, c_int, *mut PatchRecord, *mut ErrorRecord) -> c_int =
        kdetour_plan;
    let _: unsafe extern "C" fn(*const PatchRecord, c_int, *mut ErrorRecord) -> c_int = kdetour_patch_write;
    let _: unsafe extern "C" fn(*mut Detour, *mut ErrorRecord) -> c_int = kdetour_written;
    let _: unsafe extern "C" fn(*mut ErrorRecord) -> c_int = kdetour_sync;
    compile(
        "functions",
        "int (*a)(struct kdetour *const *, unsigned int, enum kdetour_protocol, struct kdetour_error *) = kdetour_attach_all;\n\
         int (*b)(struct kdetour *const *, unsigned int, enum kdetour_protocol, unsigned int, struct kdetour_error *) = \
         kdetour_detach_all;\n\
         void *(*c)(const char *) = kdetour_find;\n\
         size_t (*d)(void *, char *, size_t) = kdetour_survey;\n\
         int (*e)(struct kdetour *, enum kdetour_protocol, struct kdetour_patch *, struct kdetour_error *) = kdetour_plan;\n\
         int (*f)(const struct kdetour_patch *, int, struct kdetour_error *) = kdetour_patch_write;\n\
         int (*g)(struct kdetour *, struct kdetour_error *) = kdetour_written;\n\
         void **(*h)(const char *, const char *, unsigned int, struct kdetour_error *) = kdetour_import;\n\
         int (*i)(struct kdetour_error *) = kdetour_sync;\n\
         void **(*j)(const void *, const char *, const char *, unsigned int, struct kdetour_error *) = kdetour_pe_import;\n\
         void **(*k)(const void *, const char *, struct kdetour_error *) = kdetour_pe_export;\n\
         int (*l)(void **, struct kdetour_error *) = kdetour_pe_restore;\n\
         _Static_assert(sizeof(size_t) == sizeof(long) && sizeof(enum kdetour_protocol) == sizeof(int), \"\");",
    )
    .unwrap();
}
