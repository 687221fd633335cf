//! One HTML file with everything in it.

use super::escape;

/// Light and dark as the reader's system is; figures keep their white ground.
const STYLE: &str = "
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, 'Segoe UI', 'DejaVu Sans', Arial, sans-serif; max-width: 1180px; margin: 2em auto; padding: 0 1em; }
h1 { font-size: 1.6em; } h2 { font-size: 1.2em; margin-top: 2em; border-bottom: 1px solid #8884; }
table { border-collapse: collapse; margin: 1em 0; } td, th { padding: .25em .8em; text-align: left; border-bottom: 1px solid #8883; vertical-align: top; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
.figures { display: flex; flex-wrap: wrap; gap: 1em; } .figures svg { max-width: 100%; height: auto; border-radius: 6px; }
.pictures { display: flex; flex-wrap: wrap; gap: 1em; } .pictures figure { margin: 0; width: 150px; font-size: 13px; }
.pictures img { width: 128px; height: auto; image-rendering: pixelated; display: block; } .big { font-size: 1.3em; }
pre { overflow-x: auto; background: #8881; padding: 1em; border-radius: 6px; }";

/// A page in progress.
pub struct Page {
    title: String,
    body: String,
}

impl Page {
    /// A page with its title.
    pub fn new(title: impl Into<String>) -> Self {
        Page { title: title.into(), body: String::new() }
    }

    /// Begins a section.
    pub fn section(&mut self, title: &str) {
        self.body += &format!("<h2>{}</h2>\n", escape(title));
    }

    /// A paragraph of plain text.
    pub fn text(&mut self, text: &str) {
        self.body += &format!("<p>{}</p>\n", escape(text));
    }

    /// A paragraph in large letters.
    pub fn headline(&mut self, text: &str) {
        self.body += &format!("<p class=\"big\">{}</p>\n", escape(text));
    }

    /// Text as it stands, line by line.
    pub fn code(&mut self, text: &str) {
        self.body += &format!("<pre>{}</pre>\n", escape(text));
    }

    /// What [`table`] or another function here made, as it is.
    pub fn html(&mut self, html: &str) {
        self.body += html;
    }

    /// Figures beside each other, as space allows.
    pub fn figures(&mut self, svg: &[String]) {
        self.body += &format!("<div class=\"figures\">\n{}</div>\n", svg.concat());
    }

    /// Pictures with what is written below each: its data URI and its lines.
    pub fn pictures(&mut self, pictures: &[(String, Vec<String>)]) {
        let figure = |(uri, lines): &(String, Vec<String>)| {
            let lines: Vec<String> = lines.iter().map(|l| escape(l)).collect();
            let alt = lines.join(", ");
            format!(
                "<figure><img src=\"{uri}\" alt=\"{alt}\"><figcaption>{}</figcaption></figure>\n",
                lines.join("<br>")
            )
        };
        self.body += &format!("<div class=\"pictures\">\n{}</div>\n", pictures.iter().map(figure).collect::<String>());
    }

    /// The file's text.
    pub fn finish(self) -> String {
        let (title, body) = (escape(&self.title), self.body);
        format!(
            "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>{title}</title>\n\
             <style>{STYLE}\n</style>\n</head>\n<body>\n<h1>{title}</h1>\n{body}</body>\n</html>\n"
        )
    }
}

/// A table in HTML; columns are `<` flush left, `>` flush right.
pub fn table(heads: &[&str], align: &str, rows: &[Vec<String>]) -> String {
    let line = |cells: Vec<&str>, tag: &str| {
        let cell = |(text, a): (&str, char)| {
            let class = if a == '>' { " class=\"n\"" } else { "" };
            format!("<{tag}{class}>{}</{tag}>", escape(text))
        };
        let cells: String = cells.into_iter().zip(align.chars()).map(cell).collect();
        format!("<tr>{cells}</tr>\n")
    };
    let head = if heads.is_empty() { String::new() } else { line(heads.to_vec(), "th") };
    let rows: String = rows.iter().map(|r| line(r.iter().map(String::as_str).collect(), "td")).collect();
    format!("<table>\n{head}{rows}</table>\n")
}
