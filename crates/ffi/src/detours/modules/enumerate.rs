//! The exports and the imports of a module, told to functions of the caller's.

use super::{Export, Import, Imports, base_of, outcome, pointer_to, this};
use crate::detours::windows::{BAD_EXE_FORMAT, Bool, INVALID_PARAMETER, answer};
use core::ffi::{c_char, c_void};

/// `PF_DETOUR_IMPORT_FILE_CALLBACK`.
pub type FileCallback = unsafe extern "system" fn(*mut c_void, *mut c_void, *const c_char) -> Bool;
/// `PF_DETOUR_IMPORT_FUNC_CALLBACK`.
pub type FunctionCallback = unsafe extern "system" fn(*mut c_void, u32, *const c_char, *mut c_void) -> Bool;
/// `PF_DETOUR_IMPORT_FUNC_CALLBACK_EX`.
pub type SlotCallback = unsafe extern "system" fn(*mut c_void, u32, *const c_char, *mut *mut c_void) -> Bool;
/// `PF_DETOUR_ENUMERATE_EXPORT_CALLBACK`.
pub type ExportCallback = unsafe extern "system" fn(*mut c_void, u32, *const c_char, *mut c_void) -> Bool;

/// Calls `found` for each export of a module, in the order of its table, until that answers false.
///
/// # Safety
/// `found` may be called so; it gets `context`.
#[unsafe(no_mangle)]
pub unsafe extern "system" fn DetourEnumerateExports(
    module: *mut c_void,
    context: *mut c_void,
    found: Option<ExportCallback>,
) -> Bool {
    let Some(found) = found else { return answer(Err(INVALID_PARAMETER)) };
    let (exports, _kept) = match this::exports(base_of(module)) {
        Ok(found) => found,
        Err(error) => return answer(Err(error)),
    };
    for Export { ordinal, name, code } in exports {
        // SAFETY: the caller's word. The name is a string of the module's.
        if unsafe { found(context, ordinal, pointer_to(name).cast(), pointer_to(code)) } == 0 {
            break;
        }
    }
    answer(Ok(()))
}

/// Calls `on_file` for each file and `on_function` for each of its functions; behind those with nothing, and in the end `on_file` with
/// nothing. No more files follow when `on_file` answers false; no more functions of the file when `on_function` does.
fn tell(
    found: &Imports,
    on_file: &mut dyn FnMut(u64, u64) -> bool,
    on_function: &mut dyn FnMut(Option<&Import>) -> bool,
) {
    for (position, file) in found.files.iter().enumerate() {
        if !on_file(file.module, file.name) {
            break;
        }
        for import in found.functions.iter().filter(|import| import.file == position) {
            if !on_function(Some(import)) {
                break;
            }
        }
        on_function(None);
    }
    on_file(0, 0);
}

/// Tells the files and functions that a module imports: the functions' addresses.
///
/// # Safety
/// Both functions may be called so; they get `context`.
#[unsafe(no_mangle)]
pub unsafe extern "system" fn DetourEnumerateImports(
    module: *mut c_void,
    context: *mut c_void,
    on_file: Option<FileCallback>,
    on_function: Option<FunctionCallback>,
) -> Bool {
    let (Some(on_file), Some(on_function)) = (on_file, on_function) else {
        return answer(Err(INVALID_PARAMETER));
    };
    let found = match this::imports(base_of(module)) {
        Ok(found) => found,
        Err(error) => return answer(Err(error)),
    };
    let mut file = |module, name| {
        // SAFETY: the caller's word. The name is a string of a module that stays while `found` does.
        unsafe { on_file(context, pointer_to(module), pointer_to(name).cast()) != 0 }
    };
    let mut function = |import: Option<&Import>| {
        let (ordinal, name, function) = import.map_or((0, 0, 0), |it| (it.ordinal, it.name, it.function));
        // SAFETY: as above.
        unsafe { on_function(context, ordinal, pointer_to(name).cast(), pointer_to(function)) != 0 }
    };
    tell(&found, &mut file, &mut function);
    answer(Ok(()))
}

/// The same: where the functions' addresses are kept. What a null would be called for is left out.
///
/// # Safety
/// As for [`DetourEnumerateImports`].
#[unsafe(no_mangle)]
pub unsafe extern "system" fn DetourEnumerateImportsEx(
    module: *mut c_void,
    context: *mut c_void,
    on_file: Option<FileCallback>,
    on_slot: Option<SlotCallback>,
) -> Bool {
    let found = match this::imports(base_of(module)) {
        Ok(found) => found,
        Err(error) => return answer(Err(error)),
    };
    let mut file = |module, name| {
        // SAFETY: the caller's word. The name is a string of a module that stays while `found` does.
        on_file.is_none_or(|on_file| unsafe {
            on_file(context, pointer_to(module), pointer_to(name).cast()) != 0
        })
    };
    let mut slot = |import: Option<&Import>| {
        let (ordinal, name, slot) = import.map_or((0, 0, 0), |it| (it.ordinal, it.name, it.slot));
        on_slot.is_none_or(|on_slot| {
            // SAFETY: as above.
            unsafe { on_slot(context, ordinal, pointer_to(name).cast(), pointer_to(slot).cast()) != 0 }
        })
    };
    tell(&found, &mut file, &mut slot);
    answer(Ok(()))
}

/// Whether `slot` is where the module that `code` is in keeps the address of a function that it imports.
#[unsafe(no_mangle)]
pub extern "system" fn DetourIsFunctionImported(code: *mut u8, slot: *mut u8) -> Bool {
    let (code, slot) = (code.addr() as u64, slot.addr() as u64);
    let is_imported = || {
        let found = this::imports(this::containing(code).ok_or(BAD_EXE_FORMAT)?)?;
        Ok(found.functions.iter().any(|import| import.slot == slot))
    };
    if code == 0 || slot == 0 {
        return Bool::from(false);
    }
    Bool::from(outcome::<bool>(is_imported()))
}
