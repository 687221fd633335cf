//! Pictures in a grid, with a line under each, as PNG.

use crate::error::{Error, Result};
use image::imageops::{FilterType, replace, resize};
use image::{ImageFormat, Rgb, RgbImage};
use noto_sans_mono_bitmap::{FontWeight, RasterHeight, get_raster, get_raster_width};
use std::io::Cursor;

const MARGIN: u32 = 20;
/// Between pictures.
const GAP: u32 = 10;
/// The most that a row of pictures takes.
const ROW: u32 = 1180;
/// The least width of what is inside the margins, for the texts.
const LEAST: u32 = 560;
/// Letters that a picture's line has room for beside a small picture.
const CAPTION: usize = 16;
/// The most pixels that a large picture has on a side.
const LARGE: u32 = 256;
/// Height and width of the bar that shows a colour scale.
const BAR: [u32; 2] = [16, 256];

const INK: [u8; 3] = [0x22; 3];
const GREY: [u8; 3] = [0x66; 3];

/// A picture from pixels `[h, w, c]`: RGB, or grey if there is one channel.
pub fn picture(bytes: &[u8], [h, w, c]: [usize; 3]) -> RgbImage {
    RgbImage::from_fn(w as u32, h as u32, |x, y| {
        let at = (y as usize * w + x as usize) * c;
        Rgb(match bytes.get(at..at + c) {
            Some([r, g, b, ..]) => [*r, *g, *b],
            Some([v, ..]) => [*v; 3],
            _ => [0; 3],
        })
    })
}

/// A picture as a PNG file.
///
/// # Errors
/// [`Error::Internal`] if it cannot be encoded.
pub fn png(picture: &RgbImage) -> Result<Vec<u8>> {
    let mut bytes = Cursor::new(Vec::new());
    let failed = |e: image::ImageError| Error::Internal(format!("a picture to PNG: {e}"));
    picture.write_to(&mut bytes, ImageFormat::Png).map_err(failed)?;
    Ok(bytes.into_inner())
}

/// The colour of a number from 0 to 1: viridis, which is as readable in grey and with any colour vision
/// (van der Walt, Smith, "A Better Default Colormap for Matplotlib", SciPy 2015), linear between nine of its colours.
pub fn viridis(x: f32) -> [u8; 3] {
    const STOPS: [[u8; 3]; 9] = [
        [0x44, 0x01, 0x54],
        [0x47, 0x2d, 0x7b],
        [0x3b, 0x52, 0x8b],
        [0x2c, 0x72, 0x8e],
        [0x21, 0x91, 0x8c],
        [0x28, 0xae, 0x80],
        [0x5e, 0xc9, 0x62],
        [0xad, 0xdc, 0x30],
        [0xfd, 0xe7, 0x25],
    ];
    let at = if x.is_nan() { 0.0 } else { x.clamp(0.0, 1.0) * (STOPS.len() - 1) as f32 };
    let i = (at as usize).min(STOPS.len() - 2);
    std::array::from_fn(|c| mix(STOPS[i][c], STOPS[i + 1][c], at - i as f32))
}

/// The share `x` of `b` in `a`.
fn mix(a: u8, b: u8, x: f32) -> u8 {
    (f32::from(a) + (f32::from(b) - f32::from(a)) * x).round() as u8
}

/// A picture and what stands under it.
pub struct Tile {
    /// Small ones are enlarged by a whole factor.
    pub picture: RgbImage,
    /// It goes on in further lines where it is wider than the picture.
    pub caption: String,
}

enum Block {
    Text { text: String, size: RasterHeight, colour: [u8; 3] },
    Tiles(Vec<Tile>),
    Scale { low: String, high: String },
}

/// Headings, texts and rows of pictures below each other. Letters beyond Latin are drawn as `?`.
#[derive(Default)]
pub struct Sheet {
    blocks: Vec<Block>,
}

impl Sheet {
    /// Adds a heading.
    pub fn heading(&mut self, text: impl Into<String>) {
        self.blocks.push(Block::Text { text: text.into(), size: RasterHeight::Size20, colour: INK });
    }

    /// Adds a text.
    pub fn text(&mut self, text: impl Into<String>) {
        self.blocks.push(Block::Text { text: text.into(), size: RasterHeight::Size16, colour: GREY });
    }

    /// Adds pictures of one size, row by row.
    pub fn tiles(&mut self, tiles: Vec<Tile>) {
        self.blocks.push(Block::Tiles(tiles));
    }

    /// Adds a bar with the colours of [`viridis`], and the values at its ends.
    pub fn scale(&mut self, low: impl Into<String>, high: impl Into<String>) {
        self.blocks.push(Block::Scale { low: low.into(), high: high.into() });
    }

    /// Draws it all.
    pub fn draw(&self) -> RgbImage {
        let grids = self.blocks.iter().map(|b| if let Block::Tiles(tiles) = b { Some(Grid::new(tiles)) } else { None });
        let grids: Vec<_> = grids.collect();
        let inner = grids.iter().flatten().map(|g| g.width()).fold(LEAST, u32::max);
        let heights = self.blocks.iter().zip(&grids).map(|(block, grid)| match (block, grid) {
            (Block::Text { text, size, .. }, _) => {
                wrapped(text, letters(inner, *size)).len() as u32 * line(*size) + GAP / 2
            }
            (_, Some(grid)) => grid.height() + GAP,
            _ => BAR[0] + GAP,
        });
        let heights: Vec<u32> = heights.collect();
        let size = (inner + 2 * MARGIN, heights.iter().sum::<u32>() + 2 * MARGIN - GAP / 2);
        let mut canvas = RgbImage::from_pixel(size.0, size.1, Rgb([0xff; 3]));
        let mut top = MARGIN;
        for ((block, grid), height) in self.blocks.iter().zip(&grids).zip(heights) {
            match block {
                Block::Text { text, size, colour } => {
                    for (i, part) in wrapped(text, letters(inner, *size)).iter().enumerate() {
                        write(&mut canvas, [MARGIN, top + i as u32 * line(*size)], part, *size, *colour);
                    }
                }
                Block::Tiles(tiles) => grid.iter().for_each(|g| g.draw(tiles, &mut canvas, top)),
                Block::Scale { low, high } => {
                    let start = MARGIN + wide(low, SMALL) + GAP;
                    let bar = RgbImage::from_fn(BAR[1], BAR[0], |x, _| Rgb(viridis(x as f32 / (BAR[1] - 1) as f32)));
                    write(&mut canvas, [MARGIN, top], low, SMALL, INK);
                    replace(&mut canvas, &bar, i64::from(start), i64::from(top));
                    write(&mut canvas, [start + BAR[1] + GAP, top], high, SMALL, INK);
                }
            }
            top += height;
        }
        canvas
    }
}

/// Where the pictures of a block go.
struct Grid {
    columns: usize,
    /// Width and height of a picture, enlarged.
    picture: [u32; 2],
    /// Width of a column, and height of each row.
    column: u32,
    rows: Vec<u32>,
}

const SMALL: RasterHeight = RasterHeight::Size16;

impl Grid {
    fn new(tiles: &[Tile]) -> Self {
        let [w, h] = tiles.first().map_or([1, 1], |t| [t.picture.width().max(1), t.picture.height().max(1)]);
        let side = w.max(h);
        let wanted = match tiles.len() {
            _ if side == 1 => 48,
            0..=8 => 160,
            9..=64 => 128,
            65..=256 => 64,
            _ => 48,
        };
        let picture = if side > LARGE {
            [w, h].map(|n| (n * LARGE / side).max(1))
        } else {
            [w, h].map(|n| n * (wanted / side).max(1))
        };
        let longest = tiles.iter().map(|t| t.caption.chars().count()).max().unwrap_or(0);
        let column = picture[0].max(longest.min(CAPTION) as u32 * get_raster_width(FontWeight::Regular, SMALL) as u32);
        let most = ((ROW + GAP) / (column + GAP)).max(1) as usize;
        // Whole rows if there are such that are not much shorter, else as many in each row as can be.
        let (n, rows) = (tiles.len().max(1), tiles.len().max(1).div_ceil(most));
        let whole = (most.div_ceil(2)..=most).rev().find(|columns| n.is_multiple_of(*columns));
        let columns = if n <= most { n } else { whole.unwrap_or(n.div_ceil(rows)) };
        let lines = |t: &Tile| wrapped(&t.caption, letters(column, SMALL)).len() as u32;
        let row = |row: &[Tile]| picture[1] + row.iter().map(lines).max().unwrap_or(0) * line(SMALL);
        Grid { columns, picture, column, rows: tiles.chunks(columns).map(row).collect() }
    }

    fn width(&self) -> u32 {
        self.columns as u32 * (self.column + GAP) - GAP
    }

    fn height(&self) -> u32 {
        self.rows.iter().map(|h| h + GAP).sum()
    }

    fn draw(&self, tiles: &[Tile], canvas: &mut RgbImage, mut top: u32) {
        let [w, h] = self.picture;
        for (row, height) in tiles.chunks(self.columns).zip(&self.rows) {
            for (i, Tile { picture, caption }) in row.iter().enumerate() {
                let left = MARGIN + i as u32 * (self.column + GAP);
                let filter = if picture.width() > w { FilterType::Triangle } else { FilterType::Nearest };
                let shown = resize(picture, w, h, filter);
                replace(canvas, &shown, i64::from(left + (self.column - w) / 2), i64::from(top));
                for (i, part) in wrapped(caption, letters(self.column, SMALL)).iter().enumerate() {
                    let left = left + self.column.saturating_sub(wide(part, SMALL)) / 2;
                    write(canvas, [left, top + h + 1 + i as u32 * line(SMALL)], part, SMALL, INK);
                }
            }
            top += height + GAP;
        }
    }
}

/// From a line of text to the next.
fn line(size: RasterHeight) -> u32 {
    size.val() as u32 + 2
}

/// Letters that fit a width.
fn letters(width: u32, size: RasterHeight) -> usize {
    (width as usize / get_raster_width(FontWeight::Regular, size)).max(1)
}

/// The width of a text.
fn wide(text: &str, size: RasterHeight) -> u32 {
    (text.chars().count() * get_raster_width(FontWeight::Regular, size)) as u32
}

/// A text in lines of at most so many letters, broken after spaces and punctuation where there are any.
fn wrapped(text: &str, most: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    let mut used = 0;
    for word in text.split_inclusive([' ', '_', '-', '/', ',']) {
        let letters = word.trim_end().chars().count();
        if used > 0 && used + letters > most {
            lines.push(String::new());
            used = 0;
        }
        for c in word.chars() {
            if used == most && c != ' ' {
                lines.push(String::new());
                used = 0;
            }
            if let Some(last) = lines.last_mut().filter(|_| used < most) {
                last.push(c);
                used += 1;
            }
        }
    }
    lines
}

/// Draws a text whose first letter's upper left corner is at `[x, y]`.
fn write(canvas: &mut RgbImage, [x, y]: [u32; 2], text: &str, size: RasterHeight, colour: [u8; 3]) {
    let step = get_raster_width(FontWeight::Regular, size) as u32;
    let glyph = |c| get_raster(c, FontWeight::Regular, size);
    let glyphs = text.chars().map(|c| glyph(c).or_else(|| glyph('?')));
    for (i, glyph) in glyphs.enumerate() {
        let left = x + i as u32 * step;
        for (row, shades) in glyph.iter().flat_map(|g| g.rows().enumerate()) {
            for (column, &shade) in shades.iter().enumerate() {
                if let Some(p) = canvas.get_pixel_mut_checked(left + column as u32, y + row as u32) {
                    p.0 = std::array::from_fn(|c| mix(p.0[c], colour[c], f32::from(shade) / 255.0));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_broken_where_they_can_be() {
        assert_eq!(wrapped("large_man-made_outdoor_things", 16), ["large_man-made_", "outdoor_things"]);
        assert_eq!(wrapped("abcdefgh ij", 4), ["abcd", "efgh", "ij"]);
        assert_eq!(wrapped("", 4), [""]);
    }

    #[test]
    fn viridis_is_that_of_matplotlib() {
        // cm.viridis(x, bytes=True) of matplotlib, at places between the stops too.
        for (x, want) in [(0.0, [68, 1, 84]), (0.3, [53, 94, 141]), (0.8, [122, 209, 81]), (1.0, [253, 231, 37])] {
            let near = viridis(x).iter().zip(want).all(|(a, b)| a.abs_diff(b) <= 6);
            assert!(near, "{x}: {:?}", viridis(x));
        }
        assert_eq!(viridis(f32::NAN), viridis(0.0));
    }

    #[test]
    fn pictures_are_enlarged_whole_and_in_order() {
        let tile = |i: usize| Tile { picture: picture(&[i as u8; 12], [2, 2, 3]), caption: format!("class {i}") };
        let mut sheet = Sheet::default();
        sheet.heading("Heading");
        sheet.tiles((0..10).map(tile).collect());
        let drawn = sheet.draw();
        let colours: Vec<u8> = drawn.rows().flat_map(|r| r.map(|p| p.0[0]).collect::<Vec<_>>()).collect();
        // 128 pixels a side, and nothing of a picture is covered.
        assert!((1..10).all(|i| colours.iter().filter(|&&c| c == i).count() >= 128 * 128), "{:?}", drawn.dimensions());
        let first = |i: u8| colours.iter().position(|&c| c == i);
        assert!((1..9).all(|i| first(i) < first(i + 1)));
        assert!(drawn.width() <= ROW + 2 * MARGIN);
        // One that is larger than can be shown, grey, without a caption.
        let mut sheet = Sheet::default();
        sheet.tiles(vec![Tile { picture: picture(&[9; 2000], [2, 1000, 1]), caption: String::new() }]);
        assert!(sheet.draw().pixels().any(|p| p.0 == [9; 3]));
    }
}
