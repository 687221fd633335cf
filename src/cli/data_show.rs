//! `tilework data show`: images as training sees them.

use super::{Data, Out, Set, count};
use crate::data::loader::{Augment, Border, Loader, Outside};
use crate::data::{Split, Splits};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::figures::{Sheet, Tile, picture, png};
use crate::formats::file;
use crate::recipes::Recipe;
use crate::step::Step;
use clap::Args;
use clap::builder::RangedU64ValueParser;
use std::path::PathBuf;
use std::sync::Arc;

/// Draw images as training sees them: in its order, changed at random, with their labels
///
/// The picture shows the first batches of the first epoch; of a validation or test set the first images, as an
/// evaluation sees them.
#[derive(Debug, Args)]
pub(super) struct ShowArgs {
    /// A built-in recipe (see `tilework recipes`) or the path of a recipe file ending in .toml
    #[arg(default_value = "quickstart")]
    recipe: String,
    /// The data: a folder or .tar.gz [default: $TILEWORK_DATA, ./data or the user's cache folder]
    #[arg(long, value_name = "PATH")]
    data: Option<PathBuf>,
    /// How many images; all, if there are fewer
    #[arg(long, value_name = "N", default_value = "64", value_parser = RangedU64ValueParser::<usize>::new().range(1..=1024))]
    count: usize,
    /// Which part of the data
    #[arg(long, default_value = "train")]
    split: Split,
    /// Key of all randomness, and so of the images' order and changes [default: the recipe's]
    #[arg(long, value_name = "N", value_parser = RangedU64ValueParser::<u64>::new().range(..=i64::MAX as u64))]
    seed: Option<u64>,
    /// The PNG file to write
    #[arg(long, value_name = "FILE", default_value = "samples.png")]
    out: PathBuf,
    #[command(flatten)]
    set: Set,
}

pub(super) fn run(args: &ShowArgs, out: &mut Out) -> Result<()> {
    file::check_file(&args.out)?;
    let mut set = args.set.values.clone();
    set.extend(args.seed.map(|n| format!("seed={n}")));
    let recipe = Recipe::load(&args.recipe, &set)?;
    let Splits { train, validation, test } =
        recipe.data.split(Data::open(&recipe.data, args.data.as_deref())?.splits)?;
    let training = args.split == Split::Train;
    let data = match args.split {
        Split::Train => train,
        Split::Test => test,
        Split::Validation => validation.ok_or_else(|| {
            let remedy = "hold some out, e.g. --set data.validation=1000, or take --split test";
            Error::config("--split", "no images are held out for validation", remedy)
        })?,
    };
    let augment = if training { recipe.augment } else { recipe.augment.in_evaluation() };
    let transform = recipe.data.transform(augment);
    let loader = Loader::transformed(Arc::new(data), recipe.batch_size, &transform, &Device::cpu())?;
    // An evaluation has no seed: it sees the same images each time.
    let (seed, shuffle) = if training { (recipe.seed, recipe.shuffle) } else { (0, false) };
    let (mut feed, data, n) = (loader.feed(shuffle), loader.data(), args.count.min(loader.data().len()));
    let mut tiles = Vec::with_capacity(n);
    while tiles.len() < n {
        let batch = feed.batch(&Step { seed, batch_offset: tiles.len() as u32, ..Step::default() })?;
        let (pixels, labels) = (batch.images.to_vec::<f32>()?, batch.labels.to_vec::<i32>()?);
        let dims = loader.image();
        for (image, &label) in pixels.chunks(dims.iter().product()).zip(&labels).take(n - tiles.len()) {
            let caption = data.classes.get(label as usize).cloned().unwrap_or_else(|| format!("class {label}"));
            tiles.push(Tile { picture: picture(&transform.bytes(image), dims), caption });
        }
    }
    let [h, w, _] = loader.image();
    let which = if training && recipe.shuffle { format!("shuffled with seed {seed}") } else { "in order".to_string() };
    let mut sheet = Sheet::default();
    sheet.heading(format!("{}: {}", args.recipe, data.name));
    let number = format!("the first {} of {} {} images", count(n), count(data.len()), args.split);
    sheet.text(format!("{number}, {which}, {h}x{w}; {}", changes(&augment)));
    sheet.tiles(tiles);
    file::write(&args.out, &png(&sheet.draw())?)?;
    out.print(&format!("{number}\npicture   {}\n", args.out.display()))
}

/// The random changes in words.
fn changes(a: &Augment) -> String {
    let mut list = Vec::new();
    let mut add = |there: bool, text: String| {
        if there {
            list.push(text)
        }
    };
    let border = match a.border {
        Border::Black => "black",
        Border::Edge => "edge",
        Border::Reflect | Border::Symmetric => "mirrored",
    };
    add(a.pad > 0, format!("cropped after {} {border} pixels on each side", a.pad));
    add(a.flip > 0.0 && !a.alternate, format!("mirrored with p = {}", a.flip));
    add(a.alternate, format!("mirrored in every other epoch, in the first with p = {}", a.flip));
    add(a.vertical_flip > 0.0, format!("turned upside down with p = {}", a.vertical_flip));
    let fill = if a.fill == Outside::Black { "black" } else { "the mean colour" };
    add(a.rotation > 0.0, format!("rotated by up to {} degrees, {fill} outside", a.rotation));
    add(a.cutout > 0, format!("{0}x{0} pixels cut out", a.cutout));
    if list.is_empty() { "no random changes".into() } else { list.join(", ") }
}
