//! The tests of `src/formats/pickle.rs`: pickles of numpy arrays, cut, changed and hostile ones.

use super::*;
use crate::rng::Stream;

// {batch_label: "one", labels: [7, 300, 70000, -1], data: 2 × 3 array of 250 to 255,
//  filenames: ["a.png", "b'.png"]}, by Python and protocol.
const PYTHON2_0: &[u8] =
    b"(dp0\nS'batch_label'\np1\nS'one'\np2\nsS'labels'\np3\n(lp4\nI7\naI300\naI70000\naI-1\nasS'data'\np5\ncnu\
    mpy.core.multiarray\n_reconstruct\np6\n(cnumpy\nndarray\np7\n(I0\ntp8\nS'b'\np9\ntp10\nRp11\n(I1\n(I2\nI\
    3\ntp12\ncnumpy\ndtype\np13\n(S'u1'\np14\nI00\nI01\ntp15\nRp16\n(I3\nS'|'\np17\nNNNI-1\nI-1\nI0\ntp18\nb\
    I00\nS'\\xfa\\xfb\\xfc\\xfd\\xfe\\xff'\np19\ntp20\nbsS'filenames'\np21\n(lp22\nS'a.png'\np23\naS\"b'.png\
    \"\np24\nas.";
const PYTHON2_2: &[u8] =
    b"\x80\x02}q\x00(U\x0bbatch_labelq\x01U\x03oneq\x02U\x06labelsq\x03]q\x04(K\x07M,\x01Jp\x11\x01\x00J\xff\
    \xff\xff\xffeU\x04dataq\x05cnumpy.core.multiarray\n_reconstruct\nq\x06cnumpy\nndarray\nq\x07K\x00\x85q\
    \x08U\x01bq\t\x87q\nRq\x0b(K\x01K\x02K\x03\x86q\x0ccnumpy\ndtype\nq\rU\x02u1q\x0e\x89\x88\x87q\x0fRq\x10\
    (K\x03U\x01|q\x11NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tq\x12b\x89U\x06\xfa\xfb\xfc\xfd\xfe\xffq\x13\
    tq\x14bU\tfilenamesq\x15]q\x16(U\x05a.pngq\x17U\x06b'.pngq\x18eu.";
const PYTHON3_0: &[u8] =
    b"(dp0\nc_codecs\nencode\np1\n(Vbatch_label\np2\nVlatin1\np3\ntp4\nRp5\ng1\n(Vone\np6\ng3\ntp7\nRp8\nsg1\n\
    (Vlabels\np9\ng3\ntp10\nRp11\n(lp12\nI7\naI300\naI70000\naI-1\nasg1\n(Vdata\np13\ng3\ntp14\nRp15\ncnumpy\
    ._core.multiarray\n_reconstruct\np16\n(cnumpy\nndarray\np17\n(I0\ntp18\ng1\n(Vb\np19\ng3\ntp20\nRp21\ntp\
    22\nRp23\n(I1\n(I2\nI3\ntp24\ncnumpy\ndtype\np25\n(Vu1\np26\nI00\nI01\ntp27\nRp28\n(I3\nV|\np29\nNNNI-1\
    \nI-1\nI0\ntp30\nbI00\ng1\n(V\xfa\xfb\xfc\xfd\xfe\xff\np31\ng3\ntp32\nRp33\ntp34\nbsg1\n(Vfilenames\np35\
    \ng3\ntp36\nRp37\n(lp38\ng1\n(Va.png\np39\ng3\ntp40\nRp41\nag1\n(Vb'.png\np42\ng3\ntp43\nRp44\nas.";
const PYTHON3_2: &[u8] =
    b"\x80\x02}q\x00(c_codecs\nencode\nq\x01X\x0b\x00\x00\x00batch_labelq\x02X\x06\x00\x00\x00latin1q\x03\x86q\
    \x04Rq\x05h\x01X\x03\x00\x00\x00oneq\x06h\x03\x86q\x07Rq\x08h\x01X\x06\x00\x00\x00labelsq\th\x03\x86q\nR\
    q\x0b]q\x0c(K\x07M,\x01Jp\x11\x01\x00J\xff\xff\xff\xffeh\x01X\x04\x00\x00\x00dataq\rh\x03\x86q\x0eRq\x0f\
    cnumpy._core.multiarray\n_reconstruct\nq\x10cnumpy\nndarray\nq\x11K\x00\x85q\x12h\x01X\x01\x00\x00\x00bq\
    \x13h\x03\x86q\x14Rq\x15\x87q\x16Rq\x17(K\x01K\x02K\x03\x86q\x18cnumpy\ndtype\nq\x19X\x02\x00\x00\x00u1q\
    \x1a\x89\x88\x87q\x1bRq\x1c(K\x03X\x01\x00\x00\x00|q\x1dNNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tq\x1e\
    b\x89h\x01X\x0c\x00\x00\x00\xc3\xba\xc3\xbb\xc3\xbc\xc3\xbd\xc3\xbe\xc3\xbfq\x1fh\x03\x86q Rq!tq\"bh\x01\
    X\t\x00\x00\x00filenamesq#h\x03\x86q$Rq%]q&(h\x01X\x05\x00\x00\x00a.pngq'h\x03\x86q(Rq)h\x01X\x06\x00\
    \x00\x00b'.pngq*h\x03\x86q+Rq,eu.";
const PYTHON3_3: &[u8] =
    b"\x80\x03}q\x00(C\x0bbatch_labelq\x01C\x03oneq\x02C\x06labelsq\x03]q\x04(K\x07M,\x01Jp\x11\x01\x00J\xff\
    \xff\xff\xffeC\x04dataq\x05cnumpy._core.multiarray\n_reconstruct\nq\x06cnumpy\nndarray\nq\x07K\x00\x85q\
    \x08C\x01bq\t\x87q\nRq\x0b(K\x01K\x02K\x03\x86q\x0ccnumpy\ndtype\nq\rX\x02\x00\x00\x00u1q\x0e\x89\x88\
    \x87q\x0fRq\x10(K\x03X\x01\x00\x00\x00|q\x11NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tq\x12b\x89C\x06\
    \xfa\xfb\xfc\xfd\xfe\xffq\x13tq\x14bC\tfilenamesq\x15]q\x16(C\x05a.pngq\x17C\x06b'.pngq\x18eu.";
const PYTHON3_4: &[u8] =
    b"\x80\x04\x95\xed\x00\x00\x00\x00\x00\x00\x00}\x94(\x8c\x0bbatch_label\x94\x8c\x03one\x94\x8c\x06labels\
    \x94]\x94(K\x07M,\x01Jp\x11\x01\x00J\xff\xff\xff\xffe\x8c\x04data\x94\x8c\x16numpy._core.multiarray\x94\
    \x8c\x0c_reconstruct\x94\x93\x94\x8c\x05numpy\x94\x8c\x07ndarray\x94\x93\x94K\x00\x85\x94C\x01b\x94\x87\
    \x94R\x94(K\x01K\x02K\x03\x86\x94h\t\x8c\x05dtype\x94\x93\x94\x8c\x02u1\x94\x89\x88\x87\x94R\x94(K\x03\
    \x8c\x01|\x94NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00t\x94b\x89C\x06\xfa\xfb\xfc\xfd\xfe\xff\x94t\x94b\
    \x8c\tfilenames\x94]\x94(\x8c\x05a.png\x94\x8c\x06b'.png\x94eu.";

const ALL: [&[u8]; 6] = [PYTHON2_0, PYTHON2_2, PYTHON3_0, PYTHON3_2, PYTHON3_3, PYTHON3_4];

#[test]
fn every_python_and_protocol() {
    for bytes in ALL {
        let p = Pickle::parse(bytes).unwrap();
        assert_eq!(p.integers("labels").unwrap(), [7, 300, 70000, -1]);
        assert_eq!(p.matrix("data", 2, 3).unwrap(), [250, 251, 252, 253, 254, 255]);
        assert_eq!(p.strings("filenames").unwrap(), ["a.png", "b'.png"]);
        let e = p.matrix("data", 3, 2).unwrap_err();
        assert_eq!(e, "`data` should have shape [3, 2], got [2, 3]");
        assert_eq!(p.integers("data").unwrap_err(), "`data` is no list");
        assert_eq!(p.integers("filenames").unwrap_err(), "`filenames` is no list of integers");
        assert_eq!(p.matrix("fine_labels", 2, 3).unwrap_err(), "the pickle has no `fine_labels`");
    }
}

#[test]
fn calls_of_anything_else_are_refused_by_name() {
    let evil: [(&[u8], &str); 7] = [
        (b"(dp0\nVdata\np1\ncposix\nsystem\np2\n(Vecho bad\np3\ntp4\nRp5\ns.", "`posix.system`"),
        (b"\x80\x02}q\x00U\x04datacos\nsystem\nq\x02U\x08echo bad\x85Rs.", "`os.system`"),
        (b"\x80\x04}\x94\x8c\x02os\x94\x8c\x06system\x94\x93\x94\x8c\x08echo bad\x85R.", "`os.system`"),
        (b"(S'echo bad'\nios\nsystem\n.", "`os.system`"),
        (b"c__builtin__\neval\n(S'1'\ntR.", "`__builtin__.eval`"),
        (b"cnumpy\nload\n(S'/etc/passwd'\ntR.", "`numpy.load`"),
        (b"(\x8c\x02os\x8c\x06system\x93o.", "`os.system`"),
    ];
    for (bytes, name) in evil {
        let e = Pickle::parse(bytes).unwrap_err();
        assert!(e.contains("the global") && e.contains(name) && e.contains("is refused"), "{e}");
    }
    for opcode in b"PQo\x81\x82\x83\x84\x8b\x8f\x90\x91\x92\x96\x97\x98" {
        let e = Pickle::parse(&[b'(', b'N', *opcode, 1, 1, 1, 1, b'.']).unwrap_err();
        assert!(e.contains("is refused"), "{e}");
    }
}

#[test]
fn cut_anywhere_is_an_error() {
    for bytes in ALL {
        for n in 0..bytes.len() {
            assert!(Pickle::parse(&bytes[..n]).is_err(), "{n}");
        }
    }
}

#[test]
fn claims_are_not_believed() {
    let huge: [&[u8]; 5] = [
        b"T\xff\xff\xff\x7f.",
        b"\x8e\xff\xff\xff\xff\xff\xff\xff\xff.",
        b"\x8d\xff\xff\xff\xff\xff\xff\xff\x7f.",
        b"\x8a\xff.",
        b"r\xff\xff\xff\xff.",
    ];
    for bytes in huge {
        assert!(Pickle::parse(bytes).is_err());
    }
    // One long text, encoded over and over.
    let mut bomb = b"c_codecs\nencode\nq\x00X\x00\x04\x00\x00".to_vec();
    bomb.extend([b'a'; 1024]);
    bomb.extend(b"q\x01U\x06latin1\x86q\x02R");
    bomb.extend(b"h\x00h\x02R".repeat(100));
    assert!(Pickle::parse(&bomb).unwrap_err().contains("more room than the file"));
    assert!(Pickle::parse(&b"N".repeat(1 << 22)).unwrap_err().contains("opcodes"));
    // A list that holds itself.
    assert!(Pickle::parse(b"}X\x01\x00\x00\x00a]q\x00h\x00as.").unwrap().integers("a").is_err());
}

#[test]
fn other_arrays_are_refused() {
    let change = |from: &[u8], to: &[u8]| {
        let at = PYTHON2_2.windows(from.len()).position(|w| w == from).unwrap();
        let bytes = [&PYTHON2_2[..at], to, &PYTHON2_2[at + from.len()..]].concat();
        Pickle::parse(&bytes).and_then(|p| p.matrix("data", 2, 3).map(<[u8]>::len)).unwrap_err()
    };
    assert!(change(b"u1", b"f8").contains("an array of `f8`"));
    assert!(change(b"b\x89U\x06", b"b\x88U\x06").contains("Fortran order"));
    assert!(change(b"\x03\x86", b"\x04\x86").contains("should have shape [2, 3], got [2, 4]"));
    assert!(change(b"U\x06\xfa", b"U\x05").contains("should hold 2 × 3 bytes, got 5"));
}

/// Numbers of one case.
fn draws(case: u32) -> impl FnMut(usize) -> usize {
    let (s, mut next) = (Stream { seed: 1, epoch: 0, step: case, id: 0 }, 0);
    move |below| {
        next += 1;
        s.below(next, below as u32) as usize
    }
}

#[test]
fn random_bytes_do_no_harm() {
    for case in 0..256 {
        let mut draw = draws(case);
        let bytes: Vec<u8> = (0..draw(400)).map(|_| draw(256) as u8).collect();
        let _ = Pickle::parse(&bytes);
    }
}

#[test]
fn changed_pickles_do_no_harm() {
    for case in 0..512 {
        let mut draw = draws(case);
        let mut bytes = ALL[draw(ALL.len())].to_vec();
        for _ in 0..1 + draw(7) {
            let at = draw(bytes.len());
            bytes[at] = draw(256) as u8;
        }
        let (a, b) = (draw(bytes.len()), draw(bytes.len()));
        if a % 2 == 0 {
            bytes.swap(a, b);
        }
        if let Ok(p) = Pickle::parse(&bytes) {
            let _ = (p.integers("labels"), p.matrix("data", 2, 3).map(<[u8]>::len), p.strings("filenames"));
        }
    }
}
