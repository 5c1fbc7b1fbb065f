//! Pictures of what was measured. A picture is a list of shapes, which is written as SVG and as PNG alike.
//!
//! Text has one size and one width for each character, so that both look the same and neither needs a font of the machine.

mod charts;
mod raster;

use std::path::PathBuf;

use anyhow::{Context, Result};

pub(crate) use charts::{Bar, Distribution, Group, Panel, bars, distribution};

/// Pixels that a character takes.
pub(crate) const CHARACTER: (i32, i32) = (9, 15);

/// A colour as red, green, blue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Colour(pub(crate) u8, pub(crate) u8, pub(crate) u8);

/// Text and axes.
pub(crate) const INK: Colour = Colour(0x22, 0x22, 0x22);
/// Lines that only guide the eye.
pub(crate) const FAINT: Colour = Colour(0xcc, 0xcc, 0xcc);

/// Which end of a text is at its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Anchor {
    Start,
    End,
}

/// What a picture is made of. Pixels, from the left and from above.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Shape {
    Rectangle {
        x: i32,
        y: i32,
        width: i32,
        height: i32,
        colour: Colour,
    },
    Line {
        from: (i32, i32),
        to: (i32, i32),
        colour: Colour,
    },
    /// `y` is the text's middle.
    Text {
        x: i32,
        y: i32,
        text: String,
        anchor: Anchor,
    },
}

/// A picture on white ground.
#[derive(Clone, Debug)]
pub(crate) struct Figure {
    width: i32,
    height: i32,
    shapes: Vec<Shape>,
}

impl Figure {
    /// An empty one of so many pixels.
    pub(crate) fn new(width: i32, height: i32) -> Self {
        Self { width, height, shapes: Vec::new() }
    }

    pub(crate) fn rectangle(&mut self, x: i32, y: i32, width: i32, height: i32, colour: Colour) {
        self.shapes.push(Shape::Rectangle { x, y, width: width.max(0), height: height.max(0), colour });
    }

    pub(crate) fn line(&mut self, from: (i32, i32), to: (i32, i32), colour: Colour) {
        self.shapes.push(Shape::Line { from, to, colour });
    }

    pub(crate) fn text(&mut self, x: i32, y: i32, text: impl Into<String>, anchor: Anchor) {
        self.shapes.push(Shape::Text { x, y, text: text.into(), anchor });
    }

    /// As an SVG document.
    pub(crate) fn svg(&self) -> String {
        let (width, height) = (self.width, self.height);
        let mut out = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\" \
             font-family=\"monospace\" font-size=\"{}\" fill=\"{}\">\n\
             <rect width=\"{width}\" height=\"{height}\" fill=\"#ffffff\"/>\n",
            CHARACTER.1,
            hex(INK)
        );
        for shape in &self.shapes {
            out.push_str(&element(shape));
            out.push('\n');
        }
        out.push_str("</svg>\n");
        out
    }

    /// As a PNG file.
    pub(crate) fn png(&self) -> Result<Vec<u8>> {
        raster::png(self.width, self.height, &self.shapes)
    }

    /// Writes `NAME.svg` and `NAME.png` below `target/lab/bench`, and tells where they are.
    pub(crate) fn save(&self, name: &str) -> Result<[PathBuf; 2]> {
        let directory = super::artefacts()?;
        let files = [
            (directory.join(format!("{name}.svg")), self.svg().into_bytes()),
            (directory.join(format!("{name}.png")), self.png()?),
        ];
        for (path, bytes) in &files {
            std::fs::write(path, bytes).with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(files.map(|(path, _)| path))
    }
}

fn hex(Colour(red, green, blue): Colour) -> String {
    format!("#{red:02x}{green:02x}{blue:02x}")
}

fn element(shape: &Shape) -> String {
    match shape {
        Shape::Rectangle { x, y, width, height, colour } => {
            let fill = hex(*colour);
            format!("<rect x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{height}\" fill=\"{fill}\"/>")
        }
        Shape::Line { from, to, colour } => {
            let stroke = hex(*colour);
            format!(
                "<line x1=\"{}\" y1=\"{}\" x2=\"{}\" y2=\"{}\" stroke=\"{stroke}\"/>",
                from.0, from.1, to.0, to.1
            )
        }
        Shape::Text { x, y, text, anchor } => {
            let anchor = match anchor {
                Anchor::Start => "start",
                Anchor::End => "end",
            };
            let length = CHARACTER.0 * i32::try_from(text.chars().count()).unwrap_or(0);
            let text = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
            format!(
                "<text x=\"{x}\" y=\"{}\" text-anchor=\"{anchor}\" textLength=\"{length}\">{text}</text>",
                y + CHARACTER.1 / 3
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Figure {
        let mut figure = Figure::new(100, 40);
        figure.rectangle(10, 10, 20, 5, Colour(255, 0, 0));
        figure.line((0, 39), (99, 39), INK);
        figure.text(50, 20, "a < b", Anchor::Start);
        figure
    }

    #[test]
    fn an_svg_escapes_its_texts() {
        let svg = sample().svg();
        assert!(svg.contains("a &lt; b</text>") && svg.contains("fill=\"#ff0000\""), "{svg}");
        assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"));
    }

    #[test]
    fn a_png_has_the_same_shapes() {
        let bytes = sample().png().unwrap();
        let mut reader = png::Decoder::new(std::io::Cursor::new(bytes)).read_info().unwrap();
        let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
        let info = reader.next_frame(&mut pixels).unwrap();
        assert_eq!((info.width, info.height), (100, 40));
        let at = |x: usize, y: usize| &pixels[(y * 100 + x) * 3..][..3];
        assert_eq!(at(10, 10), [255, 0, 0]);
        assert_eq!(at(29, 14), [255, 0, 0]);
        assert_eq!(at(30, 14), [255, 255, 255]);
        assert_eq!(at(50, 39), [0x22; 3]);
        let dark = (50..95).flat_map(|x| (12..28).map(move |y| (x, y))).filter(|(x, y)| at(*x, *y)[0] < 0x80);
        assert!(dark.count() > 20, "the text is drawn");
    }
}
