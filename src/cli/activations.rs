//! `tilework activations`: what the layers of a trained network make of a picture.

use super::machine::Machine;
use super::output::{Out, table};
use super::predict::Trained;
use super::{Which, count, summary};
use crate::data::picture;
use crate::error::{Error, Result, nearest};
use crate::figures::{Sheet, Tile, picture, png, viridis};
use crate::formats::file;
use crate::nn::LayerInfo;
use clap::Args;
use image::{Rgb, RgbImage};
use std::path::PathBuf;

/// The most channels, or numbers of a vector, that are drawn one by one.
const MOST: usize = 512;

/// Draw what layers of a trained network make of a picture: their feature maps
///
/// A map for each channel, a square for each number of a vector. The colours of a map go from its own smallest value to
/// its largest, so that weak ones show too; with --shared all maps of a layer have the same, and can be compared.
#[derive(Debug, Args)]
pub(super) struct ActivationsArgs {
    /// The run's folder, e.g. runs/a1-lenet-001
    run: PathBuf,
    /// The picture: PNG or JPEG of any size
    image: PathBuf,
    /// A layer, by its key in `tilework summary`; may be repeated [default: list the layers]
    #[arg(long = "layer", value_name = "KEY", num_args = 1..)]
    layers: Vec<String>,
    /// One colour scale for all maps of a layer
    #[arg(long)]
    shared: bool,
    /// The PNG file to write
    #[arg(long, value_name = "FILE", default_value = "activations.png")]
    out: PathBuf,
    /// Which checkpoint [default: best, or last if there is no best]
    #[arg(long)]
    which: Option<Which>,
    #[command(flatten)]
    pub(super) machine: Machine,
}

pub(super) fn run(args: &ActivationsArgs, out: &mut Out) -> Result<()> {
    file::check_file(&args.out)?;
    let (device, _) = args.machine.device()?;
    let trained = Trained::open(&args.run, args.which, device)?;
    let layers = &trained.model.layers;
    if args.layers.is_empty() {
        let row = |l: &LayerInfo| vec![l.key.clone(), summary::indented(l), l.output.to_string()];
        let list = table(&["key", "layer", "output"], "<<<", layers.iter().map(row).collect());
        return out.print(&format!("{list}\nchoose with --layer KEY, as often as you like\n"));
    }
    let wanted = args.layers.iter().map(|key| find(layers, key)).collect::<Result<Vec<_>>>()?;
    let read = picture::read(&args.image, Some(trained.size()))?;
    let mut seen: Vec<Option<Vec<f32>>> = vec![None; wanted.len()];
    let input = trained.images(vec![read.into_raw()])?;
    let mut cx = trained.model.eval().watched(|key, y| {
        for (_, seen) in wanted.iter().zip(&mut seen).filter(|(l, _)| l.key == key) {
            *seen = Some(y.value().to_vec::<f32>()?);
        }
        Ok(())
    });
    let scores = trained.model.forward(&input, &mut cx)?.value().to_vec::<f32>()?;
    drop(cx);
    let mut sheet = Sheet::default();
    let best = trained.predictions(&scores).into_iter().take(3);
    let best: Vec<_> = best.map(|p| format!("{} {:.1} %", p.class, p.probability * 100.0)).collect();
    sheet.heading(format!("{}: {}", args.run.display(), args.image.display()));
    sheet.text(format!("checkpoint {}; predicted: {}", trained.checkpoint, best.join(", ")));
    let [height, width] = trained.size();
    let bytes = trained.transform().bytes(&input.value().to_vec::<f32>()?);
    let (picture, caption) = (picture(&bytes, [height, width, 3]), format!("as seen, {height}x{width}"));
    sheet.tiles(vec![Tile { picture, caption }]);
    for (layer, values) in wanted.into_iter().zip(seen) {
        let values = values.ok_or_else(|| Error::Internal(format!("layer {} was not passed", layer.key)))?;
        section(&mut sheet, layer, &values, args.shared, &trained);
    }
    file::write(&args.out, &png(&sheet.draw())?)?;
    out.print(&format!("picture   {}\n", args.out.display()))
}

/// The layer of a key.
fn find<'a>(layers: &'a [LayerInfo], key: &str) -> Result<&'a LayerInfo> {
    layers.iter().find(|l| l.key == key).ok_or_else(|| {
        let all = "without --layer, all layers are listed";
        let remedy = match nearest(key, layers.iter().map(|l| l.key.as_str())) {
            Some(near) => format!("did you mean `{near}`? {all}"),
            None => all.to_string(),
        };
        Error::config("--layer", format!("there is no layer `{key}`"), remedy)
    })
}

/// Draws the output of a layer.
fn section(sheet: &mut Sheet, layer: &LayerInfo, values: &[f32], shared: bool, trained: &Trained) {
    let all = range(values);
    let between = |[low, high]: [f32; 2]| format!("{low:.2}..{high:.2}");
    let (maps, about) = match *layer.output.dims() {
        [h, w, c] => (maps(values, [h, w, c]), format!("{} channels of {h}x{w}", count(c))),
        _ if values.len() > MOST => {
            let w = (values.len() as f32).sqrt().ceil() as usize;
            let about = format!("{} numbers, row by row, {w} in a row", count(values.len()));
            (vec![Map { size: [values.len().div_ceil(w), w], values: values.to_vec() }], about)
        }
        _ => (maps(values, [1, 1, values.len()]), format!("{} numbers", values.len())),
    };
    let drawn = if maps.len() > MOST { format!(", the first {MOST} of them") } else { String::new() };
    sheet.heading(format!("layer {}: {}", layer.key, layer.spec));
    sheet.text(format!("{about}{drawn}; values {}", between(all)));
    // A single number has no range of its own.
    let shared = shared || maps.len() == 1 || maps.iter().all(|m| m.values.len() == 1);
    match shared {
        true => sheet.scale(format!("{:.2}", all[0]), format!("{:.2}", all[1])),
        false => sheet.scale("each map's smallest value", "its largest"),
    }
    let (one, few) = (maps.len() == 1, maps.len() <= 64);
    let tile = |(i, map): (usize, Map)| {
        let own = range(&map.values);
        let caption = match map.values[..] {
            [v] if layer.output == trained.model.output => format!("{} {v:.2}", trained.class(i)),
            [v] if few => format!("{i}: {v:.2}"),
            _ if one => String::new(),
            _ if few && !shared => format!("{i}: {}", between(own)),
            _ => i.to_string(),
        };
        Tile { picture: map.picture(if shared { all } else { own }), caption }
    };
    sheet.tiles(maps.into_iter().take(MOST).enumerate().map(tile).collect());
}

/// The smallest and the largest finite value.
fn range(values: &[f32]) -> [f32; 2] {
    let values = values.iter().copied().filter(|v| v.is_finite());
    let [low, high] = values.fold([f32::INFINITY, f32::NEG_INFINITY], |[a, b], v| [a.min(v), b.max(v)]);
    if low <= high { [low, high] } else { [0.0, 0.0] }
}

/// A channel of a layer's output.
struct Map {
    size: [usize; 2],
    values: Vec<f32>,
}

/// The channels of `[h, w, c]`.
fn maps(values: &[f32], [h, w, c]: [usize; 3]) -> Vec<Map> {
    let channel = |i: usize| values.iter().skip(i).step_by(c).copied().collect();
    (0..c).map(|i| Map { size: [h, w], values: channel(i) }).collect()
}

impl Map {
    /// In colours from the first value to the second; white beyond its values.
    fn picture(&self, [low, high]: [f32; 2]) -> RgbImage {
        let ([h, w], width) = (self.size, high - low);
        RgbImage::from_fn(w as u32, h as u32, |x, y| match self.values.get(y as usize * w + x as usize) {
            Some(&v) => Rgb(viridis(if width > 0.0 { (v - low) / width } else { 0.0 })),
            None => Rgb([0xff; 3]),
        })
    }
}
