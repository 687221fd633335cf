//! Reads the pickles of the Python version of CIFAR and of PyTorch's state dicts, and nothing else.
//!
//! A pickle is a program for a stack machine, and the machine of Python can call anything. This one
//! knows the opcodes that a dictionary of numpy arrays, tensors, numbers and strings is made of (protocols
//! 0 to 4, from Python 2 or 3), and the globals of which these are built: they are not called but
//! understood. Any other global is an error that names it.
//!
//! Nothing in the file decides how much memory is used: strings are borrowed from the input, objects
//! and opcodes are counted, and what must be decoded is bounded by the size of the input.

mod globals;
mod machine;
mod strings;
mod torch;

use machine::{Id, Object, bytes_of};
pub(crate) use torch::Tensor;

/// A pickled dictionary.
#[derive(Debug)]
pub(crate) struct Pickle<'a> {
    objects: Vec<Object<'a>>,
    root: Id,
}

impl<'a> Pickle<'a> {
    /// Reads the dictionary in `input`.
    ///
    /// # Errors
    /// The problem in words, with its place in the file.
    pub(crate) fn parse(input: &'a [u8]) -> Result<Self, String> {
        let (objects, root) = machine::run(input)?;
        match objects.get(root) {
            Some(Object::Dict(_)) => Ok(Pickle { objects, root }),
            _ => Err("the pickle holds something other than a dictionary".into()),
        }
    }

    fn get(&self, key: &str) -> Result<&Object<'a>, String> {
        let Some(Object::Dict(pairs)) = self.objects.get(self.root) else { return Err("no dictionary".into()) };
        // The last one holds, as in Python.
        pairs
            .iter()
            .rev()
            .find(|(k, _)| self.objects.get(*k).and_then(bytes_of) == Some(key.as_bytes()))
            .and_then(|(_, v)| self.objects.get(*v))
            .ok_or_else(|| format!("the pickle has no `{key}`"))
    }

    /// The array of bytes called `key`, which must have this shape.
    pub(crate) fn matrix(&self, key: &str, rows: usize, columns: usize) -> Result<&[u8], String> {
        let Object::Array(Some(array)) = self.get(key)? else { return Err(format!("`{key}` is no numpy array")) };
        if array.shape != [rows, columns] {
            return Err(format!("`{key}` should have shape [{rows}, {columns}], got {:?}", array.shape));
        }
        let data = self.objects.get(array.data).and_then(bytes_of).unwrap_or(&[]);
        if Some(data.len()) != rows.checked_mul(columns) {
            return Err(format!("`{key}` should hold {rows} × {columns} bytes, got {}", data.len()));
        }
        Ok(data)
    }

    /// The list of integers called `key`.
    pub(crate) fn integers(&self, key: &str) -> Result<Vec<i64>, String> {
        self.list(key, "integers", |object| match object {
            Object::Integer(i) => Some(*i),
            _ => None,
        })
    }

    /// The list of strings called `key`.
    pub(crate) fn strings(&self, key: &str) -> Result<Vec<String>, String> {
        self.list(key, "strings", |object| bytes_of(object).map(|b| String::from_utf8_lossy(b).into_owned()))
    }

    fn list<T>(&self, key: &str, kind: &str, item: impl Fn(&Object<'a>) -> Option<T>) -> Result<Vec<T>, String> {
        let (Object::List(ids) | Object::Tuple(ids)) = self.get(key)? else {
            return Err(format!("`{key}` is no list"));
        };
        let values: Option<Vec<T>> = ids.iter().map(|id| self.objects.get(*id).and_then(&item)).collect();
        values.ok_or_else(|| format!("`{key}` is no list of {kind}"))
    }
}

#[cfg(test)]
#[path = "../../tests/unit/pickle.rs"]
mod tests;
