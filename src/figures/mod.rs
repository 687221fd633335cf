//! Figures as SVG, and the HTML page that holds them.
//!
//! [`Chart`] draws lines over numbers, [`Bars`] compares values by name, [`Matrix`] is a table of counts as a heat map,
//! [`sparkline`] is a line of text; with the feature `cli`, `Sheet` draws pictures in a grid, as PNG. Another figure is one string, with nothing outside of it: it opens in a browser as it is,
//! and goes into a [`Page`] as it is. Colours are those of Okabe and Ito (*Color Universal Design*, 2008), which people
//! with any colour vision tell apart; lines differ in their dashes too once the colours are used up.
//!
//! ```
//! use tilework::figures::Chart;
//! let svg = Chart::new("loss", "step", "cross-entropy").line("training", vec![[1.0, 2.3], [2.0, 1.9]]).svg();
//! assert!(svg.starts_with("<svg"));
//! ```

mod bars;
mod canvas;
mod chart;
mod matrix;
mod page;
#[cfg(feature = "cli")]
mod sheet;
mod spark;
mod ticks;

pub use bars::Bars;
pub use chart::Chart;
pub use matrix::Matrix;
pub use page::{Page, table};
#[cfg(feature = "cli")]
pub use sheet::{Sheet, Tile, picture, png, viridis};
pub use spark::sparkline;

/// Okabe and Ito's colours, without yellow, which is too pale on white.
const COLOURS: [&str; 7] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000"];
const INK: &str = "#222222";
const GREY: &str = "#666666";
const GRID: &str = "#e4e4e4";

/// The colour of the `i`th thing.
fn colour(i: usize) -> &'static str {
    COLOURS[i % COLOURS.len()]
}

/// Text as it stands in XML and HTML.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            // Not allowed in XML, even escaped.
            c if c.is_control() && c != '\n' && c != '\t' => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

/// At most so many letters of a text, the rest as an ellipsis.
fn shortened(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.to_string();
    }
    text.chars().take(most.saturating_sub(1)).chain(['…']).collect()
}
