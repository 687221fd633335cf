//! How a finding names a place in memory.

use super::Region;
use super::access::Access;
use super::block::Block;

/// `4 bytes at x[17]`, or only `x[17]`.
pub(super) fn place(regions: &[Region], block: &Block, a: Access, long: bool) -> String {
    let shared = block.shared.variables.iter().map(|v| (v.name(), v.start, v.bytes));
    let dynamic = ("dyn".to_string(), block.shared.dynamic_start(), block.shared.dynamic_bytes);
    let arguments = regions.iter().map(|r| (r.name.to_string(), r.start, r.bytes));
    let all: Vec<_> = arguments.chain(shared).chain([dynamic]).filter(|(_, _, bytes)| *bytes > 0).collect();
    let element = |name: &str, offset: usize| match a.bytes {
        1..=4 => format!("{name}[{}]", offset / a.bytes),
        n => format!("{name}[{}..{}]", offset / 4, (offset + n) / 4 - 1),
    };
    let bytes = a.bytes;
    if let Some((name, start, _)) = all.iter().find(|(_, s, n)| a.address >= *s && a.address + bytes <= s + n) {
        let element = element(name, a.address - start);
        return if long { format!("{bytes} bytes at {element}") } else { element };
    }
    if a.address < 4096 {
        return format!("{bytes} bytes through a null pointer");
    }
    let distance = |s: usize, n: usize| if a.address < s { s - a.address } else { a.address.saturating_sub(s + n) };
    match all.iter().min_by_key(|(_, s, n)| distance(*s, *n)) {
        Some((name, s, n)) if distance(*s, *n) < 1 << 20 => {
            if a.address < *s {
                return format!("{bytes} bytes, {} before the start of `{name}`", s - a.address);
            }
            let element = element(name, a.address - s);
            match a.address.checked_sub(s + n) {
                None => format!("{bytes} bytes at {element}, across the end of `{name}`"),
                Some(0) => format!("{bytes} bytes past the end of `{name}`, at {element}"),
                Some(gap) => format!("{bytes} bytes, {gap} past the end of `{name}`, at {element}"),
            }
        }
        _ => format!("{bytes} bytes at {:#x}, far from every argument", a.address),
    }
}
