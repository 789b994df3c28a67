"""Pictures of scenes: 64x64 RGB, drawn eight times too large and averaged down, so edges are smooth."""

from PIL import Image, ImageDraw

from data_pipelines.toyworld.scene import BACKGROUNDS, COLORS, POSITIONS, Scene

IMAGE_SIZE = 64
# Half the width of an object, pixels. Cells are 21 pixels wide: large ones nearly fill theirs and never touch.
HALF_WIDTH = {"small": 6.0, "large": 10.0}
CELL_CENTERS = (11.0, 32.0, 53.0)
CROSS_ARM = 0.36  # half the width of a cross's arm over half the width of the cross
_OVERSAMPLING = 8


def cell_center(position: str) -> tuple[float, float]:
    """(x, y) in pixels of the middle of a named place; (0, 0) is the picture's top left corner."""
    row, column = divmod(POSITIONS.index(position), 3)
    return CELL_CENTERS[column], CELL_CENTERS[row]


def outline(shape: str, x: float, y: float, half: float) -> list[tuple[float, float]]:
    """Corners of a shape around (x, y), in pixels. A circle has none: it is drawn as an ellipse."""
    if shape == "square":
        return [(x - half, y - half), (x + half, y - half), (x + half, y + half), (x - half, y + half)]
    if shape == "triangle":
        return [(x, y - half), (x + half, y + half), (x - half, y + half)]
    if shape == "cross":
        arm = CROSS_ARM * half
        quarter = [(arm, -half), (arm, -arm), (half, -arm)]
        corners = []
        for _ in range(4):
            corners += quarter
            quarter = [(-dy, dx) for dx, dy in quarter]
        return [(x + dx, y + dy) for dx, dy in corners]
    raise ValueError(f"no outline for shape {shape!r}; known: square, triangle, cross")


def draw(scene: Scene) -> Image.Image:
    """The picture of a scene: PIL image, mode RGB, 64x64. Every attribute must be known."""
    scale = _OVERSAMPLING
    canvas = Image.new("RGB", (IMAGE_SIZE * scale,) * 2, BACKGROUNDS[scene.background])
    pen = ImageDraw.Draw(canvas)
    for item in scene.objects:
        x, y = cell_center(item.position)
        half = HALF_WIDTH[item.size]
        if item.shape == "circle":
            # Pillow includes the last pixel of a box, hence the -1.
            box = [(x - half) * scale, (y - half) * scale, (x + half) * scale - 1, (y + half) * scale - 1]
            pen.ellipse(box, fill=COLORS[item.color])
        else:
            corners = [(cx * scale, cy * scale) for cx, cy in outline(item.shape, x, y, half)]
            pen.polygon(corners, fill=COLORS[item.color])
    return canvas.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BOX)
