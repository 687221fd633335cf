//! Writes event files as TensorBoard reads them: records of TensorFlow's TFRecord format (length and contents, each
//! with a checksum), in each a message `Event`. The numbers of the fields are those of `event.proto` and `summary.proto`.

use super::protobuf::Message;
use crc::{CRC_32_ISCSI, Crc};

/// CRC-32C, as iSCSI has it (RFC 3720).
const CRC: Crc<u32> = Crc::<u32>::new(&CRC_32_ISCSI);

/// A checksum as records hold it, so that a record of records has no checksum of a checksum.
fn masked(bytes: &[u8]) -> [u8; 4] {
    CRC.checksum(bytes).rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes()
}

/// An event as a record. `time` is in seconds since 1970.
fn record(time: f64, step: u64, field: impl FnOnce(Message) -> Message) -> Vec<u8> {
    let event = field(Message::new().double(1, time).int(2, step as i64)).finish();
    let length = (event.len() as u64).to_le_bytes();
    [&length[..], &masked(&length), &event, &masked(&event)].concat()
}

/// What a file begins with: its version, and that a session starts whose first event is of this step. TensorBoard
/// forgets what the files before it say of this step and later ones.
pub(crate) fn start(time: f64, step: u64) -> Vec<u8> {
    // SessionLog.SessionStatus.START.
    let session = Message::new().int(1, 1);
    [record(time, 0, |m| m.bytes(3, "brain.Event:2")), record(time, step, |m| m.message(7, session))].concat()
}

/// Values by their tags, after a step.
pub(crate) fn scalars(time: f64, step: u64, values: &[(&str, f64)]) -> Vec<u8> {
    let value = |(tag, x): &(&str, f64)| Message::new().bytes(1, tag).float(2, *x as f32);
    record(time, step, |m| m.message(5, Message::new().messages(1, values.iter().map(value))))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::formats::protobuf::tests::{Value, fields, of};

    /// Step, tags with values, and whether a session starts.
    type Event = (i64, Vec<(String, f32)>, bool);

    /// The events of a file, whose checksums must fit.
    pub(crate) fn events(mut bytes: &[u8]) -> Vec<Event> {
        let mut all = Vec::new();
        while !bytes.is_empty() {
            let length = bytes.split_off(..8).unwrap();
            assert_eq!(bytes.split_off(..4).unwrap(), masked(length));
            let event = bytes.split_off(..u64::from_le_bytes(length.try_into().unwrap()) as usize).unwrap();
            assert_eq!(bytes.split_off(..4).unwrap(), masked(event));
            let step = fields(event).into_iter().find_map(|(f, v)| match v {
                Value::Int(i) if f == 2 => Some(i),
                _ => None,
            });
            let value = |v: &Vec<u8>| match &fields(v)[..] {
                [(1, Value::Bytes(tag)), (2, Value::Float(x))] => (String::from_utf8(tag.clone()).unwrap(), *x),
                other => panic!("{other:?}"),
            };
            let values = of(event, 5).iter().flat_map(|s| of(s, 1)).map(|v| value(&v)).collect();
            all.push((step.unwrap(), values, of(event, 7) == [[8, 1]]));
        }
        all
    }

    #[test]
    fn checksums_are_those_of_the_specification() {
        // RFC 3720, B.4.
        assert_eq!(CRC.checksum(&[0; 32]), 0x8a91_36aa);
        assert_eq!(CRC.checksum(b"123456789"), 0xe306_9283);
        // What TensorFlow's `masked_crc32c` gives for the length of a first record, 24.
        assert_eq!(masked(&24u64.to_le_bytes()), [0xa3, 0x7f, 0x4b, 0x22]);
    }

    #[test]
    fn what_is_written_is_read() {
        let bytes = [start(1.5, 7), scalars(2.5, 51, &[("loss/batch", 0.1), ("lr", 1e-3)])].concat();
        let expected = vec![("loss/batch".to_string(), 0.1), ("lr".to_string(), 1e-3)];
        assert_eq!(events(&bytes), [(0, vec![], false), (7, vec![], true), (51, expected, false)]);
    }
}
