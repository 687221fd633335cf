//! Layers, one after the other.

use super::*;

/// Layers with names, one after the other.
#[derive(Debug, Default)]
pub struct Sequential {
    children: Vec<Child>,
}

#[derive(Debug)]
struct Child {
    name: String,
    /// Its name after those of all that it is in, once the network is built.
    key: String,
    layer: Box<dyn Layer>,
    /// Whether a layer before it can compute it too, with those between: decided once the network is built.
    joined: bool,
}

/// What there is to compute together if a layer is too, if it can be.
fn and(then: Then, layer: &dyn Layer) -> Option<Then> {
    match (layer.activation(), layer.max_pool()) {
        (Some(a), _) if then == Then::default() => Some(Some(a).into()),
        (_, Some(window)) if then.pool.is_none() => Some(Then { pool: Some(window), ..then }),
        _ => None,
    }
}

impl Sequential {
    /// Layers with names: the parts of the keys in the state dict.
    pub fn new(layers: Vec<(String, Box<dyn Layer>)>) -> Self {
        let child = |(name, layer)| Child { name, key: String::new(), layer, joined: false };
        Sequential { children: layers.into_iter().map(child).collect() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.children.is_empty()
    }

    /// Layers from the one of this number on.
    pub(super) fn forward_from(&self, first: usize, x: &Var, cx: &mut Ctx<'_>) -> Result<Var> {
        self.run(&self.children[first..], x, cx)
    }

    fn run(&self, children: &[Child], x: &Var, cx: &mut Ctx<'_>) -> Result<Var> {
        let mut x = x.clone();
        let mut children = children.iter().peekable();
        while let Some(child) = children.next() {
            let mut then = Then::default();
            while let Some(next) = children.next_if(|next| next.joined && cx.joins()) {
                then = and(then, next.layer.as_ref()).unwrap_or(then);
            }
            x = match then == Then::default() {
                true => child.layer.forward(&x, cx)?,
                false => child.layer.forward_then(then, &x, cx)?,
            };
            cx.passed(&child.key, &x)?;
        }
        Ok(x)
    }

    /// The number of the last layer that is not computed by one before it, and what it computes of those behind it.
    fn last(&self) -> Option<(usize, Then)> {
        let last = self.children.iter().rposition(|child| !child.joined)?;
        let behind = self.children[last + 1..].iter();
        Some((last, behind.fold(Then::default(), |then, next| and(then, next.layer.as_ref()).unwrap_or(then))))
    }

    /// The activation that comes first, if one does, and its key.
    pub(super) fn first_activation(&self) -> Option<(Activation, &str)> {
        let first = self.children.first()?;
        Some((first.layer.activation()?, &first.key))
    }

    /// `a | b`.
    pub(super) fn list(&self) -> String {
        self.children.iter().map(|c| c.layer.phrase()).collect::<Vec<_>>().join(" | ")
    }
}

/// Layers named by their places: 0, 1, 2.
impl From<Vec<Box<dyn Layer>>> for Sequential {
    fn from(layers: Vec<Box<dyn Layer>>) -> Self {
        Sequential::new(layers.into_iter().enumerate().map(|(i, layer)| (i.to_string(), layer)).collect())
    }
}

impl Layer for Sequential {
    fn infer(&mut self, mut x: Shape, b: &mut Builder<'_>) -> Result<Shape> {
        for i in 0..self.children.len() {
            let mut after = self.children[i + 1..].iter().map(|child| child.layer.features());
            let free = after.find(|&features| features != Features::Kept) == Some(Features::Free);
            let child = &mut self.children[i];
            if child.layer.features() == Features::Made {
                b.next_takes_any_order(free);
            }
            (child.key, x) = b.child(&child.name, child.layer.as_mut(), x)?;
        }
        // The layer that computes those behind it, and what it has of them so far.
        let (mut first, mut then) = (0, Then::default());
        for i in 1..self.children.len() {
            let (before, child) = (&self.children[first], &self.children[i]);
            match and(then, child.layer.as_ref()).filter(|&then| before.layer.takes(then)) {
                Some(more) => {
                    b.note_joined(before.key.clone(), &child.key);
                    self.children[i].joined = true;
                    then = more;
                }
                None => (first, then) = (i, Then::default()),
            }
        }
        Ok(x)
    }

    fn forward(&self, x: &Var, cx: &mut Ctx<'_>) -> Result<Var> {
        self.forward_from(0, x, cx)
    }

    fn summing<'a>(&'a self, after: Option<Activation>, _: &'a str) -> Option<&'a str> {
        let (last, then) = self.last()?;
        let child = &self.children[last];
        let joins = then.pool.is_none() && Sum::is_joined(then.activation, after);
        child.layer.summing(after, &child.key).filter(|_| joins)
    }

    fn forward_plus(&self, sum: Sum<'_>, x: &Var, cx: &mut Ctx<'_>) -> Result<Var> {
        let Some((last, then)) = self.last() else { return sum.of(x, cx) };
        let x = self.run(&self.children[..last], x, cx)?;
        self.children[last].layer.forward_plus(Sum { before: then.activation.or(sum.before), ..sum }, &x, cx)
    }

    fn onnx(&self, x: &str, graph: &mut Onnx<'_>) -> Result<String> {
        let mut x = x.to_string();
        for child in &self.children {
            x = graph.child(&child.key, child.layer.as_ref(), &x)?;
        }
        Ok(x)
    }

    fn phrase(&self) -> String {
        format!("layers [{}]", self.list())
    }
}
