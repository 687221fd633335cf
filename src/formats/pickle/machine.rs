//! The stack machine that turns a pickle into objects.

use std::borrow::Cow;
use std::collections::HashMap;

use super::globals::{Global, known_global};
use super::strings::{raw_unicode, shown, text, unquote};
use super::torch::{Storage, Tensor, storage, tensor};
use safetensors::Dtype as Element;

/// Most opcodes in one file: the official ones have about 300,000.
const MAX_OPCODES: usize = 1 << 21;
/// Most axes of an array.
pub(super) const MAX_AXES: usize = 8;

/// Index of an object. Objects refer to each other by index, so that cycles do no harm.
pub(super) type Id = usize;

#[derive(Debug)]
pub(super) enum Object<'a> {
    None,
    Integer(i64),
    Float,
    Bytes(Cow<'a, [u8]>),
    Text(Cow<'a, str>),
    Tuple(Vec<Id>),
    List(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    Global(Global),
    /// A numpy type by its code, as in `u1`.
    Dtype(String),
    /// A numpy array, empty until its state has come.
    Array(Option<Array>),
    /// A class of PyTorch's storages, by what it holds.
    StorageType(Element),
    Storage(Storage),
    Tensor(Tensor),
}

#[derive(Clone, Debug)]
pub(super) struct Array {
    pub(super) shape: Vec<usize>,
    pub(super) data: Id,
}

/// The bytes of a string of either kind: Python 2 makes no difference between them.
pub(super) fn bytes_of<'o>(object: &'o Object<'_>) -> Option<&'o [u8]> {
    match object {
        Object::Bytes(b) => Some(b),
        Object::Text(t) => Some(t.as_bytes()),
        _ => None,
    }
}

/// Runs the program in `input`. Returns all objects, and which of them is the result.
pub(super) fn run(input: &[u8]) -> Result<(Vec<Object<'_>>, Id), String> {
    let mut machine = Machine {
        input,
        at: 0,
        objects: Vec::new(),
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
        decoded: 0,
    };
    let root = machine.run().map_err(|problem| format!("byte {} of the pickle: {problem}", machine.at))?;
    Ok((machine.objects, root))
}

struct Machine<'a> {
    input: &'a [u8],
    at: usize,
    objects: Vec<Object<'a>>,
    stack: Vec<Id>,
    /// Stack heights at which a mark was set.
    marks: Vec<usize>,
    memo: HashMap<u64, Id>,
    /// Bytes made by decoding text.
    decoded: usize,
}

impl<'a> Machine<'a> {
    fn run(&mut self) -> Result<Id, String> {
        for _ in 0..MAX_OPCODES {
            let op = self.byte()?;
            if op == b'.' {
                return self.pop();
            }
            self.step(op)?;
        }
        Err(format!("more than {MAX_OPCODES} opcodes"))
    }

    fn step(&mut self, op: u8) -> Result<(), String> {
        match op {
            // Frames and the protocol's number: nothing to do.
            0x80 => match self.byte()? {
                0..=4 => {}
                p => return Err(format!("protocol {p}, of which only 0 to 4 are read; pickle with protocol=4")),
            },
            0x95 => drop(self.bytes(8)?),

            b'(' => self.marks.push(self.stack.len()),
            b'0' if self.marks.last() == Some(&self.stack.len()) => drop(self.marks.pop()),
            b'0' => drop(self.pop()?),
            b'1' => drop(self.pop_mark()?),
            b'2' => self.stack.push(self.top()?),

            b'N' => self.push(Object::None),
            0x88 => self.push(Object::Integer(1)),
            0x89 => self.push(Object::Integer(0)),
            b'K' => self.integer(1)?,
            b'M' => self.integer(2)?,
            b'J' => self.integer(4)?,
            0x8a => self.long()?,
            b'I' | b'L' => {
                let text = text(self.line()?)?;
                let digits = text.trim_end_matches('L');
                let value = digits.parse().map_err(|_| format!("`{}` is no integer of 64 bits", shown(text)))?;
                self.push(Object::Integer(value));
            }
            b'F' => {
                self.line()?;
                self.push(Object::Float);
            }
            b'G' => {
                self.bytes(8)?;
                self.push(Object::Float);
            }

            b'U' | b'C' => self.string(1, false)?,
            b'T' | b'B' => self.string(4, false)?,
            0x8e => self.string(8, false)?,
            0x8c => self.string(1, true)?,
            b'X' => self.string(4, true)?,
            0x8d => self.string(8, true)?,
            b'S' => {
                let line = self.line()?;
                let bytes = unquote(line)?;
                self.push(Object::Bytes(bytes));
            }
            b'V' => {
                let line = self.line()?;
                let text = raw_unicode(line)?;
                self.push(Object::Text(text));
            }

            b')' => self.push(Object::Tuple(Vec::new())),
            0x85..=0x87 => {
                let n = usize::from(op - 0x84);
                let from = self.stack.len().checked_sub(n).filter(|h| *h >= self.floor());
                let items = self.stack.split_off(from.ok_or("the stack is empty")?);
                self.push(Object::Tuple(items));
            }
            b't' => {
                let items = self.pop_mark()?;
                self.push(Object::Tuple(items));
            }
            b']' => self.push(Object::List(Vec::new())),
            b'l' => {
                let items = self.pop_mark()?;
                self.push(Object::List(items));
            }
            b'}' => self.push(Object::Dict(Vec::new())),
            b'd' => {
                let items = self.pop_mark()?;
                self.push(Object::Dict(Vec::new()));
                self.set_items(&items)?;
            }
            b'a' => {
                let item = self.pop()?;
                self.append(&[item])?;
            }
            b'e' => {
                let items = self.pop_mark()?;
                self.append(&items)?;
            }
            b's' => {
                let (value, key) = (self.pop()?, self.pop()?);
                self.set_items(&[key, value])?;
            }
            b'u' => {
                let items = self.pop_mark()?;
                self.set_items(&items)?;
            }

            b'p' | b'g' => {
                let text = text(self.line()?)?;
                let key = text.parse().map_err(|_| format!("`{}` is no memo number", shown(text)))?;
                if op == b'p' { self.put(key)? } else { self.recall(key)? }
            }
            b'q' | b'r' | b'h' | b'j' => {
                let key = self.number(if matches!(op, b'q' | b'h') { 1 } else { 4 })?;
                if matches!(op, b'q' | b'r') { self.put(key)? } else { self.recall(key)? }
            }
            0x94 => self.put(self.memo.len() as u64)?,

            b'c' | b'i' => {
                let (module, name) = (text(self.line()?)?, text(self.line()?)?);
                let global = known_global(module, name)?;
                if op == b'i' {
                    return Err(format!("an instance of {module}.{name}, which is not made here"));
                }
                self.push(global);
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                let global = known_global(self.text_of(module)?, self.text_of(name)?)?;
                self.push(global);
            }
            b'Q' => {
                let id = self.pop()?;
                let parts = self.tuple_of(id).map_err(|_| "a reference to what is no storage is refused")?;
                let storage = storage(&self.objects, parts)?;
                self.push(Object::Storage(storage));
            }
            b'R' => self.call()?,
            b'b' => self.build()?,
            _ => return Err(format!("opcode 0x{op:02x}, which no such file has, is refused")),
        }
        Ok(())
    }

    // Input.

    fn bytes(&mut self, n: usize) -> Result<&'a [u8], String> {
        let rest = self.input.get(self.at..).unwrap_or(&[]);
        let bytes = rest.get(..n).ok_or_else(|| format!("cut off: {n} bytes expected, got {}", rest.len()))?;
        self.at += n;
        Ok(bytes)
    }

    fn byte(&mut self) -> Result<u8, String> {
        self.bytes(1).map(|b| b.iter().sum())
    }

    /// An unsigned little-endian number of at most 8 bytes.
    fn number(&mut self, width: usize) -> Result<u64, String> {
        Ok(self.bytes(width)?.iter().rev().fold(0, |n, b| (n << 8) | u64::from(*b)))
    }

    /// The rest of the line, without its end.
    fn line(&mut self) -> Result<&'a [u8], String> {
        let rest = self.input.get(self.at..).unwrap_or(&[]);
        let n = rest.iter().position(|b| *b == b'\n').ok_or("cut off: a line has no end")?;
        let line = self.bytes(n)?;
        self.at += 1;
        Ok(line)
    }

    fn integer(&mut self, width: usize) -> Result<(), String> {
        let n = self.number(width)?;
        // Only the widest of them has a sign.
        self.push(Object::Integer(if width == 4 { i64::from(n as u32 as i32) } else { n as i64 }));
        Ok(())
    }

    fn long(&mut self) -> Result<(), String> {
        let width = usize::from(self.byte()?);
        if width > 8 {
            return Err(format!("an integer of {width} bytes, of which only 8 are read"));
        }
        let n = self.number(width)?;
        let unused = 64 - 8 * width as u32;
        self.push(Object::Integer(if width == 0 { 0 } else { ((n << unused) as i64) >> unused }));
        Ok(())
    }

    fn string(&mut self, width: usize, is_text: bool) -> Result<(), String> {
        let n = self.number(width)?;
        let bytes = self.bytes(usize::try_from(n).unwrap_or(usize::MAX))?;
        self.push(if is_text { Object::Text(text(bytes)?.into()) } else { Object::Bytes(bytes.into()) });
        Ok(())
    }

    // The stack.

    fn push(&mut self, object: Object<'a>) {
        self.stack.push(self.objects.len());
        self.objects.push(object);
    }

    /// The height below which nothing may be taken: that of the last mark.
    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn top(&self) -> Result<Id, String> {
        self.stack.get(self.floor()..).and_then(<[Id]>::last).copied().ok_or_else(|| "the stack is empty".into())
    }

    fn pop(&mut self) -> Result<Id, String> {
        let id = self.top()?;
        self.stack.pop();
        Ok(id)
    }

    fn pop_mark(&mut self) -> Result<Vec<Id>, String> {
        let height = self.marks.pop().ok_or("a mark is missing")?;
        Ok(self.stack.split_off(height.min(self.stack.len())))
    }

    fn put(&mut self, key: u64) -> Result<(), String> {
        let id = self.top()?;
        self.memo.insert(key, id);
        Ok(())
    }

    fn recall(&mut self, key: u64) -> Result<(), String> {
        let id = self.memo.get(&key).ok_or_else(|| format!("nothing was remembered as {key}"))?;
        self.stack.push(*id);
        Ok(())
    }

    // Objects.

    fn object(&self, id: Id) -> Result<&Object<'a>, String> {
        self.objects.get(id).ok_or_else(|| "no such object".into())
    }

    fn text_of(&self, id: Id) -> Result<&str, String> {
        text(bytes_of(self.object(id)?).ok_or("a string expected")?)
    }

    fn tuple_of(&self, id: Id) -> Result<&[Id], String> {
        match self.object(id)? {
            Object::Tuple(items) => Ok(items),
            _ => Err("a tuple expected".into()),
        }
    }

    fn append(&mut self, items: &[Id]) -> Result<(), String> {
        let list = self.top()?;
        match self.objects.get_mut(list) {
            Some(Object::List(list)) => list.extend(items),
            _ => return Err("items for something other than a list".into()),
        }
        Ok(())
    }

    fn set_items(&mut self, items: &[Id]) -> Result<(), String> {
        if !items.len().is_multiple_of(2) {
            return Err("a key without a value".into());
        }
        let dict = self.top()?;
        match self.objects.get_mut(dict) {
            Some(Object::Dict(dict)) => dict.extend(items.chunks_exact(2).map(|pair| (pair[0], pair[1]))),
            _ => return Err("items for something other than a dictionary".into()),
        }
        Ok(())
    }

    /// The result of calling one of the known globals, worked out without calling anything.
    fn call(&mut self) -> Result<(), String> {
        let (args, callable) = (self.pop()?, self.pop()?);
        let Object::Global(global) = *self.object(callable)? else { return Err("a call of what is no global".into()) };
        let args = self.tuple_of(args)?;
        let result = match (global, args) {
            (Global::Reconstruct, [class, ..]) => match self.object(*class)? {
                Object::Global(Global::NdArray) => Object::Array(None),
                _ => return Err("an array of a class other than numpy.ndarray".into()),
            },
            (Global::Dtype, [code, ..]) => Object::Dtype(shown(self.text_of(*code)?)),
            (Global::Encode, [string, coding]) => {
                let coding = self.text_of(*coding)?;
                if !["latin1", "latin-1", "iso-8859-1"].contains(&coding) {
                    return Err(format!("bytes in the encoding `{}`, of which only latin1 is read", shown(coding)));
                }
                let string = self.text_of(*string)?;
                // One text may be encoded again and again: together, no more than the file is long.
                let decoded = self.decoded + string.chars().count();
                if decoded > self.input.len() {
                    return Err("encoded bytes take more room than the file".into());
                }
                let bytes: Option<Vec<u8>> = string.chars().map(|c| u8::try_from(u32::from(c)).ok()).collect();
                self.decoded = decoded;
                Object::Bytes(bytes.ok_or("text that is not latin1")?.into())
            }
            (Global::OrderedDict, []) => Object::Dict(Vec::new()),
            (Global::RebuildTensor, args) => Object::Tensor(tensor(&self.objects, args)?),
            (Global::RebuildParameter, [data, ..]) => match self.object(*data)? {
                Object::Tensor(tensor) => Object::Tensor(tensor.clone()),
                _ => return Err("a parameter that is no tensor".into()),
            },
            _ => return Err("a call with arguments that numpy and PyTorch do not use".into()),
        };
        self.push(result);
        Ok(())
    }

    /// Gives an array or a dtype its state.
    fn build(&mut self) -> Result<(), String> {
        let (state, target) = (self.pop()?, self.top()?);
        match self.object(target)? {
            // Byte order and the like, which mean nothing for single bytes.
            Object::Dtype(_) => return Ok(()),
            // The versions of PyTorch's modules.
            Object::Dict(_) => return Ok(()),
            Object::Array(None) => {}
            _ => return Err("a state for something other than an array".into()),
        }
        let &[_version, shape, dtype, fortran, data] = self.tuple_of(state)? else {
            return Err("an array's state should have 5 parts".into());
        };
        match self.object(dtype)? {
            Object::Dtype(code) if code.trim_start_matches('|') == "u1" => {}
            Object::Dtype(code) => return Err(format!("an array of `{code}`, of which only uint8 is read")),
            _ => return Err("an array without a dtype".into()),
        }
        if !matches!(self.object(fortran)?, Object::Integer(0)) {
            return Err("an array in Fortran order; save it in C order".into());
        }
        if !matches!(self.object(data)?, Object::Bytes(_)) {
            return Err("an array without bytes".into());
        }
        let axes = self.tuple_of(shape)?;
        if axes.len() > MAX_AXES {
            return Err(format!("an array of {} axes", axes.len()));
        }
        let axis = |id: &Id| match self.object(*id) {
            Ok(Object::Integer(n)) => usize::try_from(*n).map_err(|_| format!("an axis of length {n}")),
            _ => Err("an axis without a length".into()),
        };
        let shape = axes.iter().map(axis).collect::<Result<Vec<_>, _>>()?;
        if let Some(Object::Array(array)) = self.objects.get_mut(target) {
            *array = Some(Array { shape, data });
        }
        Ok(())
    }
}
