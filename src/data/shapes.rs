//! The embedded data set `shapes`: generated images of ten shapes, 32×32, RGB.
//!
//! An image is a pure function of (seed, split, index), the same on every machine: the random
//! numbers are Philox, and the drawing uses only `+ - * /` and `sqrt` on `f32`, which IEEE 754
//! defines to the last bit. A rotation is a random vector, normalised: no sine is needed.
//!
//! One shape per image, with random place, size, rotation and colours, on a background with a
//! gradient, among small distractors and noise. The label of image `i` is `i % 10`.

use rayon::prelude::*;

use super::{Dataset, Splits};
use crate::rng::{Stream, stream, to_unit};

/// Images in the train split.
pub const TRAIN: usize = 10_000;
/// Images in the test split.
pub const TEST: usize = 2_000;
/// The classes, in the order of their labels.
pub const CLASSES: [&str; 10] =
    ["circle", "square", "triangle", "ring", "cross", "star", "crescent", "heart", "stripes", "checker"];

const SIDE: usize = 32;
const CHANNELS: usize = 3;
/// Samples per pixel and axis where an edge may run.
const SAMPLES: usize = 3;

type Rgb = [f32; 3];

/// Generates both splits with the given numbers of images.
///
/// The first `n` images are the same whatever the numbers are.
pub fn generate(seed: u64, train: usize, test: usize) -> Splits {
    Splits { train: split(seed, 0, "train", train), validation: None, test: split(seed, 1, "test", test) }
}

fn split(seed: u64, ordinal: u32, name: &str, n: usize) -> Dataset {
    let bytes = SIDE * SIDE * CHANNELS;
    let mut images = vec![0; n * bytes];
    images.par_chunks_exact_mut(bytes).enumerate().for_each(|(i, image)| {
        let stream = Stream { seed, epoch: 0, step: i as u32, id: stream::SHAPES + ordinal };
        draw(i % CLASSES.len(), &mut Dice::new(stream), image);
    });
    Dataset {
        name: format!("shapes {name}"),
        classes: CLASSES.map(String::from).to_vec(),
        height: SIDE,
        width: SIDE,
        channels: CHANNELS,
        images,
        labels: (0..n).map(|i| (i % CLASSES.len()) as i32).collect(),
    }
}

/// The random numbers of one image, drawn in order.
struct Dice {
    stream: Stream,
    next: u32,
    block: [u32; 4],
}

impl Dice {
    fn new(stream: Stream) -> Self {
        Dice { stream, next: 0, block: [0; 4] }
    }

    fn word(&mut self) -> u32 {
        if self.next.is_multiple_of(4) {
            self.block = self.stream.block(self.next / 4);
        }
        self.next += 1;
        self.block[(self.next as usize + 3) % 4]
    }

    /// Uniform in 0..`n`.
    fn below(&mut self, n: u32) -> u32 {
        ((u64::from(self.word()) * u64::from(n)) >> 32) as u32
    }

    /// Uniform in [low, high).
    fn range(&mut self, low: f32, high: f32) -> f32 {
        low + (high - low) * to_unit(self.word())
    }

    fn rgb(&mut self, low: f32, high: f32) -> Rgb {
        [0; 3].map(|_| self.range(low, high))
    }

    /// A uniformly random direction: a point of the disc, by rejection, normalised.
    fn direction(&mut self) -> [f32; 2] {
        // Eight rejections in a row have odds of 1 in 200,000; then any direction will do.
        for _ in 0..8 {
            let (x, y) = (self.range(-1.0, 1.0), self.range(-1.0, 1.0));
            let r2 = x * x + y * y;
            if r2 > 0.01 && r2 <= 1.0 {
                let r = r2.sqrt();
                return [x / r, y / r];
            }
        }
        [1.0, 0.0]
    }

    /// A direction at most `steepness` to 1 off the horizontal.
    fn tilt(&mut self, steepness: f32) -> [f32; 2] {
        let t = self.range(-steepness, steepness);
        let r = (1.0 + t * t).sqrt();
        [1.0 / r, t / r]
    }

    /// A colour about `contrast` away from `from`: mostly lighter, or in any direction.
    /// Reflected into the cube where it would leave it.
    fn contrasting(&mut self, from: Rgb, contrast: f32, lighter: bool) -> Rgb {
        let d = self.rgb(-1.0, 1.0);
        let norm = (d[0] * d[0] + d[1] * d[1] + d[2] * d[2]).sqrt().max(0.05);
        let sign = if lighter && d[0] + d[1] + d[2] < 0.0 { -1.0 } else { 1.0 };
        let mut to = from;
        for (t, d) in to.iter_mut().zip(d) {
            let step = sign * d / norm * contrast;
            *t += if (0.0..=1.0).contains(&(*t + step)) { step } else { -step };
        }
        to
    }
}

/// A shape in the plane: its frame, and its colour with a gradient along the frame's first axis.
struct Figure {
    class: usize,
    centre: [f32; 2],
    axis: [f32; 2],
    radius: f32,
    colour: Rgb,
    shade: f32,
}

impl Figure {
    fn paint(&self, canvas: &mut [Rgb]) {
        // One copy of the loop for each shape, with the shape's test in it: ten times faster than a test by number.
        match self.class {
            0 => self.fill(canvas, circle),
            1 => self.fill(canvas, square),
            2 => self.fill(canvas, triangle),
            3 => self.fill(canvas, ring),
            4 => self.fill(canvas, cross),
            5 => self.fill(canvas, star),
            6 => self.fill(canvas, crescent),
            7 => self.fill(canvas, heart),
            8 => self.fill(canvas, stripes),
            _ => self.fill(canvas, checker),
        }
    }

    /// Paints over the image what lies `inside`, antialiased by counting samples.
    fn fill(&self, canvas: &mut [Rgb], inside: impl Fn(f32, f32) -> bool) {
        // No shape reaches further than 1.4 radii from its centre.
        let reach = self.radius * 1.4 + 1.0;
        let span = |c: f32| (c - reach).max(0.0) as usize..((c + reach).max(0.0) as usize + 1).min(SIDE);
        let offset: [f32; SAMPLES] = std::array::from_fn(|k| (k as f32 + 0.5) / SAMPLES as f32 - 0.5);
        let scale = 1.0 / self.radius;
        let [cos, sin] = self.axis;
        for row in span(self.centre[1]) {
            for col in span(self.centre[0]) {
                let (x, y) = (col as f32 + 0.5 - self.centre[0], row as f32 + 0.5 - self.centre[1]);
                if x * x + y * y > reach * reach {
                    continue;
                }
                let mut hits = 0u32;
                for dy in offset {
                    for dx in offset {
                        let (x, y) = (x + dx, y + dy);
                        hits += u32::from(inside((x * cos + y * sin) * scale, (y * cos - x * sin) * scale));
                    }
                }
                let along = (x * cos + y * sin) * scale;
                let cover = hits as f32 / (SAMPLES * SAMPLES) as f32;
                if let Some(pixel) = canvas.get_mut(row * SIDE + col) {
                    for (k, p) in pixel.iter_mut().enumerate() {
                        *p += cover * (self.colour[k] + self.shade * along - *p);
                    }
                }
            }
        }
    }
}

// The shapes: whether the point (u, v) lies inside. Each fills about the unit disc; v points down. `&` and `|` on
// purpose: all samples of a pixel take the same way.

#[inline]
fn circle(u: f32, v: f32) -> bool {
    u * u + v * v < 0.9
}

#[inline]
fn square(u: f32, v: f32) -> bool {
    box_of(0.82, u, v)
}

/// Equilateral, one vertex up.
#[inline]
fn triangle(u: f32, v: f32) -> bool {
    (v < 0.58) & (1.732_050_8 * u.abs() - v < 1.16)
}

#[inline]
fn ring(u: f32, v: f32) -> bool {
    let r2 = u * u + v * v;
    (r2 < 1.0) & (r2 > 0.36)
}

#[inline]
fn cross(u: f32, v: f32) -> bool {
    ((u.abs() < 0.3) & (v.abs() < 1.0)) | ((v.abs() < 0.3) & (u.abs() < 1.0))
}

/// A pentagram: the points on the inner side of at least four of its five lines, whose normals point at its tips:
/// 0°, ±72° and ±144° from down.
#[inline]
fn star(u: f32, v: f32) -> bool {
    let (s1, c1, s2, c2) = (0.951_056_5, 0.309_017, 0.587_785_25, -0.809_017);
    let lines = [v, s1 * u + c1 * v, s2 * u + c2 * v, -s1 * u + c1 * v, -s2 * u + c2 * v];
    let mut inner = 0;
    for line in lines {
        inner += u32::from(line < 0.38);
    }
    inner >= 4
}

#[inline]
fn crescent(u: f32, v: f32) -> bool {
    (u * u + v * v < 1.0) & ((u - 0.5) * (u - 0.5) + v * v > 0.6)
}

/// The circle x² + y² = 1, lifted by √|x|.
#[inline]
fn heart(u: f32, v: f32) -> bool {
    let y = 0.3 - 1.2 * v - 0.9 * u.abs().sqrt();
    u * u + y * y < 1.0
}

/// Five bands, of which three are painted.
#[inline]
fn stripes(u: f32, v: f32) -> bool {
    box_of(0.95, u, v) & even_band(u + 0.95, 0.38)
}

/// Four by four fields.
#[inline]
fn checker(u: f32, v: f32) -> bool {
    box_of(0.96, u, v) & (even_band(u + 0.96, 0.48) == even_band(v + 0.96, 0.48))
}

#[inline]
fn box_of(half: f32, u: f32, v: f32) -> bool {
    (u.abs() < half) & (v.abs() < half)
}

/// Whether the (non-negative) value lies in an even band of this width.
#[inline]
fn even_band(value: f32, width: f32) -> bool {
    (value / width) as i32 % 2 == 0
}

/// Draws one image of a class.
fn draw(class: usize, dice: &mut Dice, image: &mut [u8]) {
    let side = SIDE as f32;
    let ground = dice.rgb(0.1, 0.7);
    let slope = dice.range(0.0, 0.35);
    let down = dice.direction();
    let mut canvas = vec![[0.0; 3]; SIDE * SIDE];
    for (i, pixel) in canvas.iter_mut().enumerate() {
        let (x, y) = ((i % SIDE) as f32 / side - 0.5, (i / SIDE) as f32 / side - 0.5);
        let light = slope * (x * down[0] + y * down[1]);
        *pixel = [ground[0] + light, ground[1] + light, ground[2] + light];
    }

    let radius = dice.range(8.0, 12.0);
    let room = (side / 2.0 - radius).max(0.0) * 0.8;
    let contrast = dice.range(0.3, 0.7);
    let figure = Figure {
        class,
        centre: [0.0; 2].map(|_| side / 2.0 + dice.range(-room, room)),
        axis: dice.tilt(0.7),
        radius,
        colour: dice.contrasting(ground, contrast, true),
        shade: dice.range(-0.12, 0.12),
    };
    // Distractors: little circles, squares and triangles, half of them under the shape.
    let distractors = dice.below(5);
    for k in 0..=distractors {
        if k == distractors / 2 {
            figure.paint(&mut canvas);
        }
        let blob = Figure {
            class: dice.below(3) as usize,
            centre: [0.0; 2].map(|_| dice.range(0.0, side)),
            axis: dice.direction(),
            radius: dice.range(1.2, 2.6),
            colour: dice.contrasting(ground, 0.5, false),
            shade: 0.0,
        };
        if k < distractors {
            blob.paint(&mut canvas);
        }
    }

    let noise = dice.range(0.0, 0.12);
    // A word gives noise to one pixel; its fourth byte brightens all three channels alike.
    for (pixel, out) in canvas.iter().zip(image.chunks_exact_mut(CHANNELS)) {
        let bytes = dice.word().to_le_bytes();
        let grain = |k: usize| (f32::from(bytes[k]) - 127.5) / 127.5;
        for k in 0..CHANNELS {
            let value = pixel[k] + noise * (grain(k) + grain(3)) * 0.7;
            out[k] = (value.clamp(0.0, 1.0) * 255.0 + 0.5) as u8;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sha2::{Digest, Sha256};

    /// The same bytes everywhere: if this fails, the numbers that anyone has measured on `shapes`
    /// no longer compare.
    #[test]
    fn pixels_are_pinned() {
        let s = generate(0, 1000, 200);
        let digest =
            |d: &Dataset| Sha256::digest(&d.images)[..8].iter().map(|b| format!("{b:02x}")).collect::<String>();
        assert_eq!((digest(&s.train), digest(&s.test)), ("7ac8693df3001fbe".into(), "39f5b157399b4757".into()));
    }

    #[test]
    fn an_image_depends_on_seed_split_and_index_alone() {
        let (a, b, c) = (generate(3, 40, 40), generate(3, 25, 10), generate(4, 40, 40));
        assert_eq!(a.train.images[..25 * 3072], b.train.images);
        assert_ne!(a.train.images, a.test.images);
        assert_ne!(a.train.images, c.train.images);
        assert_ne!(a.train.image(0), a.train.image(10));
    }

    #[test]
    fn classes_are_balanced_and_visible() {
        let d = generate(1, 200, 0).train;
        assert_eq!((d.len(), d.images.len(), d.classes.len()), (200, 200 * 3072, 10));
        for class in 0..10 {
            assert_eq!(d.labels.iter().filter(|l| **l == class).count(), 20);
        }
        // No shape is empty or fills its square, and each is inside the reach that `paint` assumes.
        let shapes = [circle, square, triangle, ring, cross, star, crescent, heart, stripes, checker];
        for (inside, name) in shapes.iter().zip(CLASSES) {
            let (mut hits, mut all) = (0, 0);
            for i in -200..=200 {
                for j in -200..=200 {
                    let (u, v) = (i as f32 * 0.01, j as f32 * 0.01);
                    let hit = inside(u, v);
                    assert!(!hit || u * u + v * v < 1.4 * 1.4, "{name} at ({u}, {v})");
                    if u.abs() <= 1.0 && v.abs() <= 1.0 {
                        all += 1;
                        hits += usize::from(hit);
                    }
                }
            }
            assert!(hits * 10 > all * 2 && hits * 10 < all * 9, "{name}: {hits} of {all}");
        }
    }
}
