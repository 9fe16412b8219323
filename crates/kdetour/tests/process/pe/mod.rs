//! PE images in a process: their imports and exports are pointers, or lead to some.

mod made;

use crate::pointers::LONG;
use crate::support::{
    assert_no_page_is_writable_and_executable, in_a_process_of_its_own, map, native, permissions, poke,
    protect, text, turn, unmap,
};
use kdetour::typed::set::{self, Member};
use kdetour::typed::{Detour, PointerDetour, pe, reclaim};
use kdetour::{AtomicAddress, Error, Method, Protocol};
use made::{Class, Made, PAGE, SIZE_OF_IMAGE};
use std::ffi::c_void;
use std::hint::black_box;
use std::mem::transmute;
use std::ptr;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::SeqCst;
use std::thread;

const CLASS: Class = if cfg!(target_arch = "x86") { Class::Pe32 } else { Class::Pe64 };

native! {
    type Price = extern "C" fn(u32) -> u32;
}

native! {
    /// What the loader finds for the import by name, and for the one by number.
    extern "C" fn sold(of: u32) -> u32 {
        black_box(of) + 100
    }
}

native! {
    extern "C" fn numbered(of: u32) -> u32 {
        black_box(of) + 700
    }
}

native! {
    /// Calls its original, and adds a digit.
    extern "C" fn digit<const NUMBER: usize>(of: u32) -> u32 {
        // SAFETY: a function of this type is there before the first call gets here.
        let original = unsafe { transmute::<usize, Price>(CELLS[NUMBER].load(SeqCst) as usize) };
        10 * original(of) + NUMBER as u32 + 1
    }
}

static CELLS: [AtomicAddress; 3] = [const { AtomicAddress::new(0) }; 3];

fn address(function: Price) -> u64 {
    function as *const () as u64
}

fn function(address: u64) -> Price {
    // SAFETY: functions of this type are what these tests look up.
    unsafe { transmute::<usize, Price>(address as usize) }
}

/// An image that a loader has mapped: its pointers are filled, its pages protected.
struct Loaded {
    made: Made,
    base: u64,
    len: usize,
}

impl Loaded {
    fn new() -> Self {
        let len = 3 * PAGE;
        let base = map(len);
        let loaded = Self { made: Made::new(CLASS, base), base, len };
        poke(base, &loaded.made.bytes);
        for (place, function) in
            [(loaded.made.imported_price, sold as Price), (loaded.made.imported_seventh, numbered)]
        {
            loaded.bind(place, address(function));
        }
        for (page, permissions) in ["r", "rx", "r"].into_iter().enumerate() {
            protect(base + (page * PAGE) as u64, PAGE, permissions);
        }
        loaded
    }

    fn bind(&self, place: u32, function: u64) {
        poke(self.at(place), &(function as usize).to_ne_bytes());
    }

    fn image(&self) -> *const c_void {
        ptr::with_exposed_provenance(self.base as usize)
    }

    fn at(&self, place: u32) -> u64 {
        self.base + u64::from(place)
    }

    fn entry(&self, index: u32) -> u32 {
        u32::from_ne_bytes(text(self.at(self.made.entry(index)), 4).try_into().unwrap())
    }

    /// What a loader gives whoever asks for an export.
    fn look_up(&self, index: u32) -> Price {
        function(self.base.wrapping_add(self.entry(index).into()))
    }

    fn buy(&self, of: u32) -> u32 {
        function(self.at(self.made.buy))(of)
    }

    fn seventh(&self, of: u32) -> u32 {
        function(self.at(self.made.buy + 16))(of)
    }

    fn lead(&self, symbol: &str) -> Result<pe::Export<Price>, Error> {
        // SAFETY: the image stays as long as the tests need it.
        unsafe { pe::Export::lead(self.image(), symbol) }
    }

    fn bytes(&self) -> Vec<u8> {
        text(self.base, self.len)
    }

    fn unmap(&self) {
        unmap(self.base, self.len);
    }
}

/// Detours what a pointer leads to.
fn attach<const NUMBER: usize>(place: *const Price) -> PointerDetour<Price> {
    // SAFETY: it leads to a function of this type; nobody keeps what was read of it.
    let detour = unsafe { PointerDetour::attach(place, digit::<NUMBER>) }.unwrap();
    CELLS[NUMBER].store(address(detour.original()), SeqCst);
    detour
}

#[test]
fn imports_come_and_go() {
    if !in_a_process_of_its_own("pe::imports_come_and_go") {
        return;
    }
    let _turn = turn();
    let loaded = Loaded::new();
    let before = loaded.bytes();
    let imports = |library, symbol| pe::imports::<Price>(loaded.image(), library, symbol);
    let (price, seventh) = (imports(Some("prices.dll"), "price").unwrap(), imports(None, "#7").unwrap());
    assert_eq!((price.len(), seventh.len()), (1, 1));
    assert_eq!((loaded.buy(1), loaded.seventh(1)), (101, 701));
    let (by_name, by_number) = (attach::<0>(price[0]), attach::<1>(seventh[0]));
    assert_eq!((loaded.buy(1), loaded.seventh(1), sold(1)), (1011, 7012, 101));
    assert_eq!(permissions(loaded.at(loaded.made.imported_price)), "r--p");
    assert_no_page_is_writable_and_executable();
    drop((by_name, by_number));
    assert_eq!((loaded.buy(1), loaded.seventh(1)), (101, 701));
    assert!(loaded.bytes() == before);
    reclaim(LONG).unwrap();
}

#[test]
fn what_is_bound_late_is_not_found() {
    let _turn = turn();
    let loaded = Loaded::new();
    let [buy, late] = [loaded.made.buy, loaded.made.late].map(|place| loaded.at(place));
    assert_eq!(text(late, 4), buy.to_le_bytes()[..4]);
    for symbol in ["late", "#3"] {
        assert_eq!(pe::imports_of(loaded.base, None, symbol), Err(Error::UnknownSymbol));
    }
}

/// One that the image binds itself: it would write over a detour.
#[cfg(windows)]
#[test]
fn a_pointer_that_is_bound_late_is_refused_until_it_is() {
    let _turn = turn();
    let loaded = Loaded::new();
    let place = loaded.at(loaded.made.late);
    let late = std::ptr::with_exposed_provenance::<Price>(place as usize);
    // SAFETY: it is refused.
    let refused = unsafe { PointerDetour::attach(late, digit::<2>) }.map(drop);
    assert_eq!(refused, Err(Error::Unbound { address: place }));
    assert_eq!(text(place, 4), loaded.made.bytes[loaded.made.late as usize..][..4]);
    loaded.bind(loaded.made.late, address(sold));
    let detour = attach::<2>(late);
    let call = || {
        let pointer = text(place, size_of::<usize>()).try_into().unwrap();
        function(usize::from_le_bytes(pointer) as u64)(1)
    };
    assert_eq!((call(), detour.original()(1)), (1013, 101));
    drop(detour);
    assert_eq!(call(), 101);
    // Others of the image that lead to its own code are no such pointers.
    loaded.bind(loaded.made.imported_price, loaded.at(loaded.made.treble));
    let import = std::ptr::with_exposed_provenance::<Price>(loaded.at(loaded.made.imported_price) as usize);
    drop(attach::<2>(import));
}

#[test]
fn exports_lead_to_a_pointer_and_back() {
    if !in_a_process_of_its_own("pe::exports_lead_to_a_pointer_and_back") {
        return;
    }
    let _turn = turn();
    let loaded = Loaded::new();
    let before = loaded.bytes();
    let earlier = loaded.look_up(0);
    assert_eq!(address(earlier), loaded.at(loaded.made.treble));
    let mut export = loaded.lead("treble").unwrap();
    // Calls do what they did, by another way.
    let kept = loaded.look_up(0);
    assert!(address(kept) != address(earlier) && kept(5) == 15 && earlier(5) == 15);
    assert_eq!(
        (permissions(address(kept)), permissions(export.pointer().addr() as u64)),
        ("r-xp".into(), "rw-p".into())
    );
    assert_eq!(permissions(loaded.at(loaded.made.entry(0))), "r--p");
    assert_no_page_is_writable_and_executable();

    let mut detour = attach::<0>(export.pointer());
    assert_eq!((kept(5), loaded.look_up(0)(5), earlier(5)), (151, 151, 15));
    let other = attach::<1>(export.pointer());
    assert_eq!(kept(5), 1512);
    detour.detach().unwrap();
    CELLS[1].store(address(other.original()), SeqCst);
    assert_eq!(kept(5), 152);
    drop(other);
    assert_eq!(kept(5), 15);
    // SAFETY: as for `attach`.
    unsafe { detour.reattach() }.unwrap();
    assert_eq!(kept(5), 151);

    // Who comes now finds the function; who has kept the landing is detoured until the detour goes.
    export.restore().unwrap();
    assert_eq!(export.restore(), Err(Error::NotAttached));
    assert_eq!((address(loaded.look_up(0)), kept(5)), (address(earlier), 151));
    assert!(loaded.bytes() == before);
    drop(detour);
    assert_eq!(kept(5), 15);
    reclaim(LONG).unwrap();
    assert_eq!(kept(5), 15);
    // The same landing once more; by its number.
    let again = loaded.lead("#5").unwrap();
    assert_eq!((address(loaded.look_up(0)), again.pointer()), (address(kept), export.pointer()));
    drop(again);
    assert!(loaded.bytes() == before);
}

#[test]
fn an_export_leads_there_as_long_as_anybody_wants_it_to() {
    if !in_a_process_of_its_own("pe::an_export_leads_there_as_long_as_anybody_wants_it_to") {
        return;
    }
    let _turn = turn();
    let loaded = Loaded::new();
    let before = loaded.bytes();
    let (one, mut other) = (loaded.lead("treble").unwrap(), loaded.lead("treble").unwrap());
    let beside = loaded.lead("buy").unwrap();
    assert!(one.pointer() == other.pointer() && beside.pointer() != one.pointer());
    drop(one);
    assert_ne!(address(loaded.look_up(0)), loaded.at(loaded.made.treble));
    assert_eq!((loaded.look_up(0)(5), loaded.look_up(1)(5)), (15, 105));
    drop(beside);
    other.restore().unwrap();
    assert!(loaded.bytes() == before);
    // An image that is gone needs nothing; nor is its place taken for another's.
    let mut gone = loaded.lead("treble").unwrap();
    loaded.unmap();
    gone.restore().unwrap();
    assert_eq!(loaded.lead("treble").err(), Some(Error::Unreadable { address: loaded.base }));
}

#[test]
fn what_somebody_else_wrote_is_told_and_left() {
    let _turn = turn();
    let loaded = Loaded::new();
    let entry = loaded.at(loaded.made.entry(0));
    let mut export = loaded.lead("treble").unwrap();
    let landing = loaded.entry(0);
    poke(entry, &loaded.made.buy.to_ne_bytes());
    let changed = Error::PointerChanged {
        address: entry,
        expected: loaded.base + u64::from(landing),
        found: loaded.at(loaded.made.buy),
    };
    assert_eq!(export.restore(), Err(changed));
    assert_eq!(loaded.entry(0), loaded.made.buy);
    // What he wrote is another function, which is led on its own, and restored first.
    let mut his = loaded.lead("treble").unwrap();
    assert!(his.pointer() != export.pointer() && loaded.look_up(0)(5) == 105);
    his.restore().unwrap();
    assert_eq!(loaded.entry(0), loaded.made.buy);
    poke(entry, &landing.to_ne_bytes());
    export.restore().unwrap();
    assert_eq!(loaded.entry(0), loaded.made.treble);
    // What is as it was at first needs no write.
    let export = loaded.lead("treble").unwrap();
    poke(entry, &loaded.made.treble.to_ne_bytes());
    drop(export);
    assert_eq!(loaded.entry(0), loaded.made.treble);
}

/// Of a set of imports, exports and functions all are detoured or none.
#[test]
fn a_set_of_all_kinds_is_all_or_nothing() {
    if !in_a_process_of_its_own("pe::a_set_of_all_kinds_is_all_or_nothing") {
        return;
    }
    let _turn = turn();
    let loaded = Loaded::new();
    let import = pe::imports_of(loaded.base, None, "price").unwrap()[0];
    let export = loaded.lead("treble").unwrap();
    let member = |target: u64, method: Method, number: usize| Member {
        method,
        target,
        detour: address([digit::<0>, digit::<1>, digit::<2>][number]),
        cell: Some(&CELLS[number]),
        ..Member::default()
    };
    let set = [
        member(import, Method::Pointer, 0),
        member(export.pointer().addr() as u64, Method::Pointer, 1),
        member(address(numbered), Method::Jump, 2),
    ];
    // SAFETY: all are functions of one type, of this program or of an image that stays.
    let attach = |set: &[Member]| unsafe { set::attach(Protocol::Exchange, set) };
    let calls = || (loaded.buy(1), loaded.look_up(0)(1), loaded.seventh(1));
    let handles = attach(&set).unwrap();
    assert_eq!(calls(), (1011, 32, 7013));
    set::detach(Protocol::Exchange, &handles).unwrap();
    assert_eq!(calls(), (101, 3, 701));
    let not = Member { target: import + 1, ..set[0] };
    let failed = attach(&[set[0], set[1], set[2], not]).unwrap_err();
    assert_eq!((failed.index, failed.error), (3, Error::Misaligned { address: import + 1 }));
    assert_eq!(calls(), (101, 3, 701));
    set::drain(&handles, LONG).unwrap();
}

#[test]
fn what_is_none_is_refused_by_name() {
    let _turn = turn();
    let loaded = Loaded::new();
    let before = loaded.bytes();
    let error = |symbol: &str| loaded.lead(symbol).err();
    for symbol in ["trebles", "Treble", "", "#7", "#4", "#65536", "treble\0"] {
        assert_eq!(error(symbol), Some(Error::UnknownSymbol), "{symbol:?}");
    }
    assert!(matches!(error("elsewhere"), Some(Error::Forwarded { .. })));
    assert!(matches!(error("data"), Some(Error::NotCode { .. })));
    let imports = |image: *const c_void, library: Option<&str>, symbol: &str| {
        pe::imports::<Price>(image, library, symbol).err()
    };
    for (library, symbol) in [
        (None, "treble"),
        (None, ""),
        (Some(""), "price"),
        (Some("nothing.dll"), "price"),
        (Some("prices.dll\0"), "price"),
    ] {
        assert_eq!(imports(loaded.image(), library, symbol), Some(Error::UnknownSymbol));
    }
    // A program of Linux, memory with nothing in it, the middle of an image; no memory.
    let program = address(sold) as usize & !(PAGE - 1);
    let nothing = loaded.at(2 * PAGE as u32) as usize;
    for none in [program, nothing, loaded.base as usize + 2] {
        let not = Some(Error::NotImage { address: none as u64 });
        assert_eq!(imports(ptr::with_exposed_provenance(none), None, "price"), not);
    }
    for none in [0, 16, usize::MAX - 0xfff] {
        let not = Some(Error::Unreadable { address: none as u64 });
        assert_eq!(imports(ptr::without_provenance(none), None, "price"), not);
    }
    assert!(loaded.bytes() == before);
}

/// An image says that it is longer than what is mapped, or its tables lie where nothing is.
#[test]
fn images_that_lie_are_refused() {
    let _turn = turn();
    let loaded = Loaded::new();
    let size = |size: u32| poke(loaded.at(SIZE_OF_IMAGE as u32), &size.to_ne_bytes());
    for long in [3 * PAGE as u32, 1 << 20, u32::MAX] {
        size(long);
        assert_eq!(loaded.lead("treble").map(drop), Ok(()), "{long:#x}");
    }
    for short in [0, 1, PAGE as u32, 2 * PAGE as u32] {
        size(short);
        assert_eq!(loaded.lead("treble").err(), Some(Error::NotImage { address: loaded.base }), "{short:#x}");
    }
    size(3 * PAGE as u32);
    let not = Error::NotImage { address: loaded.base };
    let directory = loaded.at(loaded.made.import_directory as u32);
    let whole = text(directory, 4);
    for place in [3 * PAGE as u32, 0x7000_0000, u32::MAX] {
        poke(directory, &place.to_ne_bytes());
        assert_eq!(pe::imports_of(loaded.base, None, "price"), Err(not));
    }
    poke(directory, &whole);
    assert_eq!(pe::imports_of(loaded.base, None, "price").map(|places| places.len()), Ok(1));
    // A library without a name is none that can be asked for.
    poke(loaded.at(0x2200 + 12), &0x2f80_u32.to_ne_bytes());
    assert_eq!(pe::imports_of(loaded.base, Some(""), "price"), Err(Error::UnknownSymbol));
    assert_eq!(pe::imports_of(loaded.base, None, "price").map(|places| places.len()), Ok(1));
    // What cannot be read at its end is not there.
    protect(loaded.at(2 * PAGE as u32), PAGE, "");
    assert_eq!(loaded.lead("treble").err(), Some(not));
    assert_eq!(pe::imports_of(loaded.base, None, "price"), Err(not));
}

/// Behind a page that is not mapped there is something else.
#[test]
fn an_image_ends_where_nothing_is_mapped() {
    if !in_a_process_of_its_own("pe::an_image_ends_where_nothing_is_mapped") {
        return;
    }
    let _turn = turn();
    let loaded = Loaded::new();
    unmap(loaded.at(PAGE as u32), PAGE);
    let not = Error::NotImage { address: loaded.base };
    assert_eq!(loaded.lead("treble").err(), Some(not));
    assert_eq!(pe::imports_of(loaded.base, None, "price"), Err(not));
}

/// A table in an executable page stays as it is: no page is ever writable and executable.
#[test]
fn a_table_among_code_is_refused() {
    let _turn = turn();
    let loaded = Loaded::new();
    protect(loaded.at(2 * PAGE as u32), PAGE, "rx");
    let entry = loaded.at(loaded.made.entry(0));
    assert_eq!(loaded.lead("treble").err(), Some(Error::NotData { address: entry }));
    let import = pe::imports_of(loaded.base, None, "price").unwrap()[0];
    // SAFETY: it is refused.
    let refused =
        unsafe { PointerDetour::attach(ptr::with_exposed_provenance::<Price>(import as usize), digit::<0>) };
    assert_eq!(refused.err(), Some(Error::NotData { address: import }));
}

/// More exports than a page has landings, of images that lie apart; each leads to its own pointer.
#[test]
fn there_are_landings_for_all() {
    let _turn = turn();
    let images: Vec<Loaded> = (0..200).map(|_| Loaded::new()).collect();
    let led = |symbol| images.iter().map(|image| image.lead(symbol).unwrap()).collect::<Vec<_>>();
    let exports = [led("treble"), led("buy")];
    let mut places: Vec<_> = exports.iter().flatten().map(|export| export.pointer()).collect();
    places.sort();
    places.dedup();
    assert_eq!(places.len(), 400);
    for image in &images {
        assert_eq!((image.look_up(0)(5), image.look_up(1)(5)), (15, 105));
    }
    assert_no_page_is_writable_and_executable();
    drop(exports);
    for image in &images {
        assert_eq!((image.entry(0), image.entry(1)), (image.made.treble, image.made.buy));
        image.unmap();
    }
}

/// Threads look up, keep, and call; meanwhile the export is led and restored, and its pointer detoured.
#[test]
fn exports_come_and_go_under_calls() {
    if !in_a_process_of_its_own("pe::exports_come_and_go_under_calls") {
        return;
    }
    let _turn = turn();
    let loaded = Loaded::new();
    let stop = AtomicBool::new(false);
    // Who is called before the attach has returned has an original, too.
    CELLS[0].store(loaded.at(loaded.made.treble), SeqCst);
    let calls = thread::scope(|scope| {
        let callers: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    let mut calls = 0_u64;
                    let mut kept = loaded.look_up(0);
                    while !stop.load(SeqCst) {
                        for _ in 0..50 {
                            let answer = kept(5);
                            assert!(answer == 15 || answer == 151, "{answer}");
                            calls += 1;
                        }
                        kept = loaded.look_up(0);
                    }
                    calls
                })
            })
            .collect();
        for _ in 0..300 {
            let export = loaded.lead("treble").unwrap();
            let detour = attach::<0>(export.pointer());
            drop(export);
            drop(detour);
        }
        stop.store(true, SeqCst);
        callers.into_iter().map(|caller| caller.join().unwrap()).sum::<u64>()
    });
    assert!(calls > 10_000, "{calls}");
    assert_eq!(loaded.entry(0), loaded.made.treble);
    reclaim(LONG).unwrap();
}

/// Functions of Windows' own ABI, whichever they are here.
#[cfg(target_arch = "x86_64")]
type Native = extern "win64" fn(u32) -> u32;
#[cfg(target_arch = "x86")]
type Native = extern "stdcall" fn(u32) -> u32;

macro_rules! native {
    ($(#[$inline:meta])* $name:ident($of:ident) $body:block) => {
        $(#[$inline])*
        #[cfg(target_arch = "x86_64")]
        extern "win64" fn $name($of: u32) -> u32 $body
        $(#[$inline])*
        #[cfg(target_arch = "x86")]
        extern "stdcall" fn $name($of: u32) -> u32 $body
    };
}

native! {
    #[inline(never)]
    native(of) { black_box(of) * 3 }
}
native! { native_detour(of) { black_box(of) + 1 } }

#[test]
fn functions_of_windows_abi_are_detoured_as_others_are() {
    let _turn = turn();
    let target = native as Native;
    // SAFETY: both are functions of this program, of one type.
    let detour = unsafe { Detour::attach(target, native_detour) }.unwrap();
    assert_eq!((black_box(target)(5), detour.original()(5)), (6, 15));
    drop(detour);
    assert_eq!(black_box(target)(5), 15);
}
