//! The tests of `src/formats/torch.rs`: a file of `torch.save`, cut, changed and hostile ones.

use super::*;
use crate::formats::zip::files;

/// By PyTorch 2: w = arange(6).reshape(2, 3), t = w.t() (shared, strided), h and b in f16 and bf16, n = i64 7.
const SAVED: &[u8] = include_bytes!("../goldens/state.pth");

fn floats(n: &Numbers) -> Vec<f32> {
    n.bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

#[test]
fn a_state_dict_of_pytorch_is_read() {
    let list = read(SAVED).unwrap();
    let get = |name: &str| list.iter().find(|n| n.name == name).unwrap();
    assert_eq!(list.len(), 5);
    assert_eq!((floats(get("w")), get("w").shape.as_slice()), (vec![0., 1., 2., 3., 4., 5.], &[2, 3][..]));
    assert_eq!((floats(get("t")), get("t").shape.as_slice()), (vec![0., 3., 1., 4., 2., 5.], &[3, 2][..]));
    assert_eq!((get("h").dtype, get("h").bytes.as_slice()), (Dtype::F16, &[0, 0x3e][..]));
    assert_eq!((get("b").dtype, get("b").bytes.as_slice()), (Dtype::BF16, &[0xc0, 0x3f][..]));
    assert_eq!((get("n").dtype, get("n").shape.len(), get("n").bytes[0]), (Dtype::I64, 0, 7));
}

#[test]
fn damage_is_an_error_wherever_it_is() {
    for cut in 0..SAVED.len() {
        assert!(read(&SAVED[..cut]).is_err(), "cut at {cut}");
    }
    for at in 0..SAVED.len() {
        let mut changed = SAVED.to_vec();
        changed[at] ^= 0x41;
        // Padding and dates mean nothing; all else is noticed, and nothing panics.
        let _ = read(&changed);
    }
    let e = read(b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.").unwrap_err();
    assert!(e.contains("before 1.6"), "{e}");
}

/// A stored archive of these files.
fn archive(list: &[(&str, &[u8])]) -> Vec<u8> {
    let (mut out, mut directory) = (Vec::new(), Vec::new());
    for (name, data) in list {
        let mut crc = flate2::Crc::new();
        crc.update(data);
        let mut common = vec![0; 8];
        common.extend((crc.sum()).to_le_bytes());
        common.extend([data.len() as u32; 2].iter().flat_map(|n| n.to_le_bytes()));
        common.extend((name.len() as u16).to_le_bytes());
        common.extend([0, 0]);
        directory.extend(b"PK\x01\x02\0\0\0\0");
        directory.extend(&common);
        directory.extend([0; 10]);
        directory.extend((out.len() as u32).to_le_bytes());
        directory.extend(name.as_bytes());
        out.extend(b"PK\x03\x04\0\0");
        out.extend(&common);
        out.extend(name.as_bytes());
        out.extend(*data);
    }
    let at = out.len() as u32;
    out.extend(&directory);
    out.extend(b"PK\x05\x06\0\0\0\0");
    out.extend([list.len() as u16; 2].iter().flat_map(|n| n.to_le_bytes()));
    out.extend((directory.len() as u32).to_le_bytes());
    out.extend(at.to_le_bytes());
    out.extend([0, 0]);
    out
}

#[test]
fn hostile_pickles_are_refused() {
    let tensor = |offset: &str, shape: &str, strides: &str, len: &str| {
        format!(
            "(dS'w'\nctorch._utils\n_rebuild_tensor_v2\n((S'storage'\nctorch\nFloatStorage\nS'0'\nS'cpu'\n{len}tQ\
             {offset}{shape}{strides}I00\n(dtRs."
        )
    };
    let data = [0u8; 16];
    let of = |program: &str| read(&archive(&[("a/data.pkl", program.as_bytes()), ("a/data/0", &data)]));
    assert_eq!(of(&tensor("I0\n", "(I2\nI2\nt", "(I2\nI1\nt", "I4\n")).unwrap()[0].bytes, data);
    let big = "I4611686018427387904\n";
    for (program, words) in [
        ("cos\nsystem\n(S'true'\ntR.".to_string(), "`os.system` is refused"),
        ("cbuiltins\neval\n(S'1'\ntR.".to_string(), "`builtins.eval` is refused"),
        ("ctorch\nload\n.".to_string(), "`torch.load` is refused"),
        ("(dS'w'\nI1\ns.".to_string(), "`w` is no tensor"),
        (format!("{}{}.", "(".repeat(100_000), "l".repeat(100_000)), "other than a dictionary"),
        (tensor("I1\n", "(I2\nI2\nt", "(I2\nI1\nt", "I4\n"), "outside"),
        (tensor("I0\n", "(I2\nI2\nt", &format!("(I2\n{big}t"), "I4\n"), "outside"),
        (tensor("I0\n", &format!("({big}{big}t"), "(I0\nI0\nt", "I4\n"), "sizes"),
        (tensor("I0\n", "(I9\nt", "(I0\nt", "I4\n"), "sizes"),
        (tensor("I-1\n", "(I1\nt", "(I1\nt", "I4\n"), "length of -1"),
        (tensor("I0\n", "(I1\nt", "(I1\nt", big), "numbers"),
        (tensor("I0\n", "(I1\nt", "tt", "I4\n"), "mark"),
    ] {
        let e = of(&program).unwrap_err();
        assert!(e.contains(words), "{words}: {e}");
    }
    // The same storage again and again.
    let program = tensor("I0\n", "(I4\nt", "(I1\nt", "I4\n");
    let (head, tail) = (&program[2..program.len() - 1], "s.".len());
    let many = format!("(d{}.", (0..2000).map(|i| head.replace("'w'", &format!("'{i}'"))).collect::<String>());
    assert!(tail == 2 && of(&many).is_ok());
}

#[test]
fn archives_are_checked() {
    let whole = archive(&[("a/x", b"abc"), ("a/y", b"")]);
    assert_eq!(files(&whole).unwrap(), [("a/x", &b"abc"[..]), ("a/y", b"")]);
    let mut damaged = whole.clone();
    let at = damaged.windows(3).position(|w| w == b"abc").unwrap();
    damaged[at] = b'X';
    assert!(files(&damaged).unwrap_err().contains("CRC-32"));
    let mut packed = whole.clone();
    let central = packed.windows(4).position(|w| w == b"PK\x01\x02").unwrap();
    packed[central + 10] = 8;
    assert!(files(&packed).unwrap_err().contains("compressed"));
    for cut in 0..whole.len() {
        assert!(files(&whole[..cut]).is_err());
    }
}
