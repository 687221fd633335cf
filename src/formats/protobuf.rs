//! Writes messages of Protocol Buffers (<https://protobuf.dev/programming-guides/encoding>): a field is its number and
//! the form of its value in one number, then the value. A schema is only needed to read them.

/// A message to which fields are added.
#[derive(Debug, Default)]
pub(crate) struct Message(Vec<u8>);

impl Message {
    pub(crate) fn new() -> Self {
        Message::default()
    }

    /// Seven bits a byte, the lowest first; the highest bit says that more follow.
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    /// What comes before a value. The form is 0 for a varint, 1 for eight bytes, 2 for bytes after their number, 5 for
    /// four bytes.
    fn tag(&mut self, field: u32, form: u32) {
        self.varint(u64::from(field << 3 | form));
    }

    /// An `int32`, `int64`, `bool` or enum.
    pub(crate) fn int(mut self, field: u32, value: i64) -> Self {
        self.tag(field, 0);
        self.varint(value as u64);
        self
    }

    pub(crate) fn float(mut self, field: u32, value: f32) -> Self {
        self.tag(field, 5);
        self.0.extend(value.to_le_bytes());
        self
    }

    pub(crate) fn double(mut self, field: u32, value: f64) -> Self {
        self.tag(field, 1);
        self.0.extend(value.to_le_bytes());
        self
    }

    /// A `string`, `bytes`, or what [`Message::finish`] made of a message.
    pub(crate) fn bytes(mut self, field: u32, value: impl AsRef<[u8]>) -> Self {
        self.tag(field, 2);
        self.varint(value.as_ref().len() as u64);
        self.0.extend(value.as_ref());
        self
    }

    pub(crate) fn message(self, field: u32, value: Message) -> Self {
        self.bytes(field, value.0)
    }

    /// A `repeated` field of messages.
    pub(crate) fn messages(self, field: u32, values: impl IntoIterator<Item = Message>) -> Self {
        values.into_iter().fold(self, |m, v| m.message(field, v))
    }

    pub(crate) fn finish(self) -> Vec<u8> {
        self.0
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A field's value as it lies in a message.
    #[derive(Clone, Debug, PartialEq)]
    pub(crate) enum Value {
        Int(i64),
        Float(f32),
        Double(f64),
        Bytes(Vec<u8>),
    }

    /// The fields of a message, in their order.
    pub(crate) fn fields(mut bytes: &[u8]) -> Vec<(u32, Value)> {
        fn varint(bytes: &mut &[u8]) -> u64 {
            let end = bytes.iter().position(|b| b & 0x80 == 0).unwrap() + 1;
            let number = bytes[..end].iter().rev().fold(0, |n, b| n << 7 | u64::from(b & 0x7F));
            *bytes = &bytes[end..];
            number
        }
        let mut all = Vec::new();
        while !bytes.is_empty() {
            let tag = varint(&mut bytes) as u32;
            let mut take = |n: usize| bytes.split_off(..n).unwrap();
            let value = match tag & 7 {
                1 => Value::Double(f64::from_le_bytes(take(8).try_into().unwrap())),
                5 => Value::Float(f32::from_le_bytes(take(4).try_into().unwrap())),
                0 => Value::Int(varint(&mut bytes) as i64),
                2 => {
                    let n = varint(&mut bytes) as usize;
                    Value::Bytes(bytes.split_off(..n).unwrap().to_vec())
                }
                form => panic!("a form {form}"),
            };
            all.push((tag >> 3, value));
        }
        all
    }

    /// The bytes of every field of this number.
    pub(crate) fn of(bytes: &[u8], field: u32) -> Vec<Vec<u8>> {
        let all = fields(bytes).into_iter().filter(|(f, _)| *f == field);
        all.map(|(_, v)| if let Value::Bytes(b) = v { b } else { panic!("{v:?}") }).collect()
    }

    #[test]
    fn messages_are_those_of_the_specification() {
        // The examples of https://protobuf.dev/programming-guides/encoding.
        assert_eq!(Message::new().int(1, 150).finish(), [0x08, 0x96, 0x01]);
        assert_eq!(Message::new().bytes(2, "testing").finish(), b"\x12\x07testing");
        assert_eq!(Message::new().message(3, Message::new().int(1, 150)).finish(), [0x1a, 0x03, 0x08, 0x96, 0x01]);
        assert_eq!(Message::new().int(1, -2).finish(), b"\x08\xfe\xff\xff\xff\xff\xff\xff\xff\xff\x01");
    }

    #[test]
    fn what_is_written_is_read() {
        let inner = || Message::new().float(1, 0.1).double(16, -0.5);
        let bytes = Message::new().int(1, i64::MIN).messages(2000, [inner(), Message::new()]).finish();
        assert_eq!(fields(&bytes)[0], (1, Value::Int(i64::MIN)));
        let list = of(&bytes, 2000);
        assert_eq!(fields(&list[0]), [(1, Value::Float(0.1)), (16, Value::Double(-0.5))]);
        assert!(list[1].is_empty() && list.len() == 2);
    }
}
