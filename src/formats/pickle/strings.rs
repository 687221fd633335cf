//! Strings in the text format of protocol 0, and strings for messages.

use std::borrow::Cow;

pub(super) fn text(bytes: &[u8]) -> Result<&str, String> {
    std::str::from_utf8(bytes).map_err(|_| "text that is not UTF-8".into())
}

/// At most the first 60 characters of a text, without control characters, for messages.
pub(super) fn shown(text: &str) -> String {
    text.chars().take(60).map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// A Python string literal, as protocol 0 writes it.
pub(super) fn unquote(line: &[u8]) -> Result<Cow<'_, [u8]>, String> {
    let inner = match line {
        [b'\'', inner @ .., b'\''] | [b'"', inner @ .., b'"'] => inner,
        _ => return Err("a string without quotes".into()),
    };
    if !inner.contains(&b'\\') {
        return Ok(inner.into());
    }
    let mut out = Vec::new();
    let mut rest = inner;
    while let [first, tail @ ..] = rest {
        rest = tail;
        let byte = match (first, tail) {
            (b'\\', [b'x', hex @ ..]) if hex.len() >= 2 => {
                rest = &hex[2..];
                code(&hex[..2])? as u8
            }
            (b'\\', [c, after @ ..]) => {
                rest = after;
                match c {
                    b'n' => b'\n',
                    b'r' => b'\r',
                    b't' => b'\t',
                    b'\\' | b'\'' | b'"' => *c,
                    _ => return Err("an unknown escape in a string".into()),
                }
            }
            (b'\\', []) => return Err("a string that ends in a backslash".into()),
            _ => *first,
        };
        out.push(byte);
    }
    Ok(out.into())
}

/// Text as protocol 0 writes it: Latin-1, with `\uXXXX` and `\UXXXXXXXX` for the rest.
pub(super) fn raw_unicode(line: &[u8]) -> Result<Cow<'_, str>, String> {
    let mut out = String::new();
    let mut rest = line;
    while let [first, tail @ ..] = rest {
        let digits = match (first, tail) {
            (b'\\', [b'u', ..]) => 4,
            (b'\\', [b'U', ..]) => 8,
            _ => {
                out.push(char::from(*first));
                rest = tail;
                continue;
            }
        };
        let hex = tail.get(1..=digits).ok_or("a cut escape in a text")?;
        out.push(char::from_u32(code(hex)?).ok_or("an escape that is no character")?);
        rest = &tail[1 + digits..];
    }
    Ok(out.into())
}

fn code(hex: &[u8]) -> Result<u32, String> {
    text(hex).and_then(|t| u32::from_str_radix(t, 16).map_err(|_| "an escape that is not hexadecimal".into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literals() {
        assert_eq!(unquote(b"'plain'").unwrap(), &b"plain"[..]);
        assert_eq!(unquote(br#"'a\x00\xff\n\r\t\\\'\"b'"#).unwrap(), &b"a\0\xff\n\r\t\\'\"b"[..]);
        for bad in [&b""[..], b"'", b"x", br"'\x1'", br"'\xgg'", br"'\q'", b"'\\'"] {
            assert!(unquote(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn texts() {
        assert_eq!(raw_unicode(b"\xe9\\u00e9\\U0001F600\\n").unwrap(), "éé😀\\n");
        for bad in [&br"\u12"[..], br"\uzzzz", br"\ud800", br"\U00110000"] {
            assert!(raw_unicode(bad).is_err(), "{bad:?}");
        }
    }
}
