//! Small images, made of bytes.

/// Bytes that are written at places.
#[derive(Default)]
pub(crate) struct Bytes(pub(crate) Vec<u8>);

impl Bytes {
    pub(crate) fn put(&mut self, at: usize, bytes: &[u8]) -> &mut Self {
        if self.0.len() < at + bytes.len() {
            self.0.resize(at + bytes.len(), 0);
        }
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
        self
    }

    pub(crate) fn u16(&mut self, at: usize, value: u16) -> &mut Self {
        self.put(at, &value.to_le_bytes())
    }

    pub(crate) fn u32(&mut self, at: usize, value: u32) -> &mut Self {
        self.put(at, &value.to_le_bytes())
    }

    pub(crate) fn u64(&mut self, at: usize, value: u64) -> &mut Self {
        self.put(at, &value.to_le_bytes())
    }
}

/// A symbol of [`elf64`]: name, value, size, `st_info`.
pub(crate) type Symbol = (&'static str, u64, u64, u8);

pub(crate) const GLOBAL_FUNC: u8 = 0x12;
pub(crate) const LOCAL_FUNC: u8 = 0x02;
pub(crate) const GLOBAL_NOTYPE: u8 = 0x10;
pub(crate) const LOCAL_NOTYPE: u8 = 0x00;
pub(crate) const GLOBAL_OBJECT: u8 = 0x11;

/// Where the code of [`elf64`] is.
pub(crate) const TEXT: u64 = 0x40_1000;
/// Where its read-only data is.
pub(crate) const RODATA: u64 = 0x40_2000;

/// An x86-64 program: `.text` at 0x401000, `.rodata` at 0x402000, `.symtab`.
pub(crate) fn elf64(text: &[u8], rodata: &[u8], symbols: &[Symbol]) -> Vec<u8> {
    let mut file = Bytes::default();
    file.put(0, b"\x7fELF\x02\x01\x01").u16(16, 2).u16(18, 62).u32(20, 1).u64(24, TEXT);
    file.u64(32, 64).u16(52, 64).u16(54, 56).u16(56, 2).u16(58, 64);
    for (index, (flags, address, len)) in
        [(5, TEXT, text.len()), (4, RODATA, rodata.len())].into_iter().enumerate()
    {
        let at = 64 + 56 * index;
        let offset = address - 0x40_0000;
        file.u32(at, 1).u32(at + 4, flags).u64(at + 8, offset).u64(at + 16, address).u64(at + 24, address);
        file.u64(at + 32, len as u64).u64(at + 40, len as u64).u64(at + 48, 0x1000);
    }
    file.put(0x1000, text).put(0x2000, rodata);
    let mut strings = vec![0];
    let mut table = vec![0; 24];
    for &(name, value, size, info) in symbols {
        table.extend((strings.len() as u32).to_le_bytes());
        table.extend([info, 0]);
        table.extend(if value < RODATA { 1u16 } else { 2 }.to_le_bytes());
        table.extend(value.to_le_bytes());
        table.extend(size.to_le_bytes());
        strings.extend(name.as_bytes());
        strings.push(0);
    }
    let names = b"\0.text\0.rodata\0.symtab\0.strtab\0";
    let symtab = 0x3000;
    let strtab = symtab + table.len();
    let shstrtab = strtab + strings.len();
    let headers = (shstrtab + names.len()).next_multiple_of(8);
    file.put(symtab, &table).put(strtab, &strings).put(shstrtab, names);
    // name, type, flags, address, offset, size, link
    let sections = [
        (0, 0, 0, 0, 0, 0, 0),
        (1, 1, 6, TEXT, 0x1000, text.len(), 0),
        (7, 1, 2, RODATA, 0x2000, rodata.len(), 0),
        (15, 2, 0, 0, symtab, table.len(), 4),
        (23, 3, 0, 0, strtab, strings.len(), 0),
        (0, 3, 0, 0, shstrtab, names.len(), 0),
    ];
    file.u64(40, headers as u64).u16(60, sections.len() as u16).u16(62, 5);
    for (index, (name, kind, flags, address, offset, size, link)) in sections.into_iter().enumerate() {
        let at = headers + 64 * index;
        file.u32(at, name).u32(at + 4, kind).u64(at + 8, flags).u64(at + 16, address);
        file.u64(at + 24, offset as u64).u64(at + 32, size as u64).u32(at + 40, link).u32(at + 44, 0);
        file.u64(at + 48, 1).u64(at + 56, if kind == 2 { 24 } else { 0 });
    }
    file.0
}

/// Where a PE image of [`pe`] wants to be.
pub(crate) const PE_BASE: u64 = 0x1_4000_0000;
pub(crate) const PE32_BASE: u64 = 0x40_0000;

/// A PE image, 64-bit or 32-bit: `.text` at RVA 0x1000, `.rdata` at RVA 0x2000; the exports are names and RVAs.
/// `directories` are further data directories: index, RVA, size; they point into what `rdata` is.
pub(crate) fn pe(
    wide: bool,
    text: &[u8],
    rdata: &[u8],
    exports: &[(&str, u32)],
    directories: &[(usize, u32, u32)],
) -> Vec<u8> {
    let mut file = Bytes::default();
    file.put(0, b"MZ").u32(0x3c, 0x80).put(0x80, b"PE\0\0");
    let (machine, magic, optional): (u16, u16, u16) =
        if wide { (0x8664, 0x20b, 240) } else { (0x14c, 0x10b, 224) };
    file.u16(0x84, machine).u16(0x86, 2).u16(0x94, optional).u16(0x96, 0x2022);
    let header = 0x98;
    file.u16(header, magic).u32(header + 16, 0x1000).u32(header + 32, 0x1000).u32(header + 36, 0x200);
    if wide {
        file.u64(header + 24, PE_BASE);
    } else {
        file.u32(header + 28, PE32_BASE as u32);
    }
    file.u32(header + 56, 0x4000).u32(header + 60, 0x400);
    let numbers = header + if wide { 108 } else { 92 };
    file.u32(numbers, 16);
    // The export table is behind the read-only data.
    let mut data = Bytes(rdata.to_vec());
    data.0.resize(0x800, 0);
    if !exports.is_empty() {
        let rva = |at: usize| (0x2000 + at) as u32;
        let (table, count) = (0x400, exports.len());
        let (addresses, names) = (table + 40, table + 40 + 4 * count);
        let ordinals = names + 4 * count;
        let mut text = ordinals + 2 * count;
        data.u32(table + 16, 1).u32(table + 20, count as u32).u32(table + 24, count as u32);
        data.u32(table + 28, rva(addresses)).u32(table + 32, rva(names)).u32(table + 36, rva(ordinals));
        for (index, (name, target)) in exports.iter().enumerate() {
            data.u32(addresses + 4 * index, *target).u32(names + 4 * index, rva(text));
            data.u16(ordinals + 2 * index, index as u16).put(text, name.as_bytes());
            text += name.len() + 1;
        }
        file.u32(numbers + 4, rva(table)).u32(numbers + 8, 0x400);
    }
    for &(index, rva, size) in directories {
        file.u32(numbers + 4 + 8 * index, rva).u32(numbers + 8 + 8 * index, size);
    }
    let sections = header + usize::from(optional);
    for (index, (name, rva, flags)) in
        [(&b".text"[..], 0x1000u32, 0x6000_0020u32), (b".rdata", 0x2000, 0x4000_0040)].into_iter().enumerate()
    {
        let at = sections + 40 * index;
        file.put(at, name).u32(at + 8, 0x800).u32(at + 12, rva).u32(at + 16, 0x800);
        file.u32(at + 20, 0x400 + 0x800 * index as u32).u32(at + 36, flags);
    }
    let mut code = text.to_vec();
    code.resize(0x800, 0xcc);
    file.put(0x400, &code).put(0xc00, &data.0);
    file.0
}
