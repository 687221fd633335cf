//! The SVG under a figure: lines, rectangles and text at places in pixels.

use super::{INK, escape};

/// Where a text stands relative to its place.
#[derive(Clone, Copy)]
pub(super) enum Anchor {
    Start,
    Middle,
    End,
}

/// A drawing in progress.
pub(super) struct Canvas {
    width: f64,
    height: f64,
    body: String,
}

/// A generous estimate of a text's width: a text that is given it is not cut off in any usual font.
pub(super) fn text_width(text: &str, size: f64) -> f64 {
    text.chars().map(|c| if c < '\u{2e80}' { 0.58 } else { 1.05 }).sum::<f64>() * size
}

impl Canvas {
    pub(super) fn new(width: f64, height: f64) -> Self {
        Canvas { width, height, body: String::new() }
    }

    pub(super) fn line(&mut self, [x1, y1]: [f64; 2], [x2, y2]: [f64; 2], colour: &str) {
        self.body += &format!("<path d=\"M{x1:.1} {y1:.1}L{x2:.1} {y2:.1}\" stroke=\"{colour}\"/>\n");
    }

    /// A line through points; it breaks where one is not finite.
    pub(super) fn polyline(&mut self, points: &[[f64; 2]], colour: &str, width: f64, opacity: f64, dash: &str) {
        let mut path = String::new();
        let mut pen_down = false;
        for [x, y] in points {
            let finite = x.is_finite() && y.is_finite();
            if finite {
                path += &format!("{}{x:.1} {y:.1}", if pen_down { 'L' } else { 'M' });
            }
            pen_down = finite;
        }
        let dash = if dash.is_empty() { String::new() } else { format!(" stroke-dasharray=\"{dash}\"") };
        self.body += &format!(
            "<path d=\"{path}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"{width}\" stroke-opacity=\"{opacity}\" \
             stroke-linejoin=\"round\" stroke-linecap=\"round\"{dash}/>\n"
        );
    }

    pub(super) fn dot(&mut self, [x, y]: [f64; 2], radius: f64, colour: &str) {
        self.body += &format!("<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{radius}\" fill=\"{colour}\"/>\n");
    }

    /// A filled rectangle, with what a browser shows of it under the pointer.
    pub(super) fn rect(&mut self, [x, y]: [f64; 2], [w, h]: [f64; 2], colour: &str, hint: &str) {
        let hint = if hint.is_empty() { String::new() } else { format!("<title>{}</title>", escape(hint)) };
        self.body += &format!(
            "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{w:.1}\" height=\"{h:.1}\" fill=\"{colour}\">{hint}</rect>\n"
        );
    }

    /// A text whose base line is at `y`.
    pub(super) fn text(&mut self, [x, y]: [f64; 2], size: f64, anchor: Anchor, colour: &str, text: &str) {
        self.styled(&format!("x=\"{x:.1}\" y=\"{y:.1}\""), size, anchor, colour, text);
    }

    /// A text that reads upwards.
    pub(super) fn text_up(&mut self, [x, y]: [f64; 2], size: f64, anchor: Anchor, text: &str) {
        self.styled(&format!("transform=\"translate({x:.1} {y:.1}) rotate(-90)\""), size, anchor, INK, text);
    }

    fn styled(&mut self, place: &str, size: f64, anchor: Anchor, colour: &str, text: &str) {
        let anchor = match anchor {
            Anchor::Start => "start",
            Anchor::Middle => "middle",
            Anchor::End => "end",
        };
        let text = escape(text);
        self.body +=
            &format!("<text {place} font-size=\"{size}\" text-anchor=\"{anchor}\" fill=\"{colour}\">{text}</text>\n");
    }

    /// The title of the whole figure, at its top.
    pub(super) fn heading(&mut self, text: &str) {
        let (text, x) = (escape(&super::shortened(text, 90)), self.width / 2.0);
        self.body += &format!(
            "<text x=\"{x:.1}\" y=\"24\" font-size=\"15\" font-weight=\"600\" text-anchor=\"middle\" fill=\"{INK}\">{text}</text>\n"
        );
    }

    /// The SVG; `label` is read aloud in place of the figure.
    pub(super) fn finish(self, label: &str) -> String {
        let Canvas { width, height, body } = self;
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width:.0}\" height=\"{height:.0}\" \
             viewBox=\"0 0 {width:.0} {height:.0}\" role=\"img\" aria-label=\"{}\" \
             font-family=\"system-ui, 'Segoe UI', 'DejaVu Sans', Arial, sans-serif\">\n\
             <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n{body}</svg>\n",
            escape(label)
        )
    }
}
