//! Shapes as pixels, and pixels as a PNG file.

use std::convert::Infallible;

use anyhow::{Context, Result};
use embedded_graphics::Drawable;
use embedded_graphics::Pixel;
use embedded_graphics::draw_target::DrawTarget;
use embedded_graphics::geometry::{OriginDimensions, Point, Size};
use embedded_graphics::mono_font::MonoTextStyle;
use embedded_graphics::mono_font::iso_8859_1::FONT_9X15;
use embedded_graphics::pixelcolor::{Rgb888, RgbColor};
use embedded_graphics::primitives::{Line, Primitive, PrimitiveStyle, Rectangle};
use embedded_graphics::text::{Alignment, Baseline, Text, TextStyleBuilder};

use super::{Anchor, Colour, INK, Shape};

/// Three bytes a pixel, row by row.
struct Canvas {
    width: u32,
    height: u32,
    bytes: Vec<u8>,
}

impl OriginDimensions for Canvas {
    fn size(&self) -> Size {
        Size::new(self.width, self.height)
    }
}

impl DrawTarget for Canvas {
    type Color = Rgb888;
    type Error = Infallible;

    /// What is outside is not drawn.
    fn draw_iter<I: IntoIterator<Item = Pixel<Rgb888>>>(&mut self, pixels: I) -> Result<(), Infallible> {
        for Pixel(point, colour) in pixels {
            let (Ok(x), Ok(y)) = (u32::try_from(point.x), u32::try_from(point.y)) else { continue };
            if x < self.width && y < self.height {
                let at = (y * self.width + x) as usize * 3;
                self.bytes[at..at + 3].copy_from_slice(&[colour.r(), colour.g(), colour.b()]);
            }
        }
        Ok(())
    }
}

fn rgb(Colour(red, green, blue): Colour) -> Rgb888 {
    Rgb888::new(red, green, blue)
}

/// Draws the shapes, the last on top, on white ground.
pub(super) fn png(width: i32, height: i32, shapes: &[Shape]) -> Result<Vec<u8>> {
    let (width, height) = (u32::try_from(width)?, u32::try_from(height)?);
    let mut canvas = Canvas { width, height, bytes: vec![0xff; width as usize * height as usize * 3] };
    for shape in shapes {
        let Ok(()) = draw(shape, &mut canvas);
    }
    let mut file = Vec::new();
    let mut encoder = png::Encoder::new(&mut file, width, height);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    let mut writer = encoder.write_header().context("the head of a PNG file")?;
    writer.write_image_data(&canvas.bytes).context("the pixels of a PNG file")?;
    writer.finish().context("the end of a PNG file")?;
    Ok(file)
}

fn draw(shape: &Shape, canvas: &mut Canvas) -> Result<(), Infallible> {
    match shape {
        Shape::Rectangle { x, y, width, height, colour } => {
            Rectangle::new(Point::new(*x, *y), Size::new(width.unsigned_abs(), height.unsigned_abs()))
                .into_styled(PrimitiveStyle::with_fill(rgb(*colour)))
                .draw(canvas)
        }
        Shape::Line { from, to, colour } => Line::new(Point::new(from.0, from.1), Point::new(to.0, to.1))
            .into_styled(PrimitiveStyle::with_stroke(rgb(*colour), 1))
            .draw(canvas),
        Shape::Text { x, y, text, anchor } => {
            let alignment = match anchor {
                Anchor::Start => Alignment::Left,
                Anchor::End => Alignment::Right,
            };
            let style = TextStyleBuilder::new().alignment(alignment).baseline(Baseline::Middle).build();
            let font = MonoTextStyle::new(&FONT_9X15, rgb(INK));
            Text::with_text_style(text, Point::new(*x, *y), font, style).draw(canvas).map(drop)
        }
    }
}
