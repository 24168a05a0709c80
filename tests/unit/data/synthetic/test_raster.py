import cv2
import numpy as np

from raylg.data.synthetic.mesh import SOLID, MeshBuilder
from raylg.data.synthetic.raster import project_parallel, project_perspective, rasterise
from raylg.data.synthetic.rendered import plane_depth

SIZE = (160, 120)
CAMERA = np.array([150.0, 150.0, 80.0, 60.0])
WALL = np.array([[-2.0, 5.0, 3.0], [4.0, 1.0, 0.0], [0.0, 0.0, -3.0]])


def pose(x: float = 0.0, yaw: float = 0.0) -> np.ndarray:
    """World to camera of an upright camera at (x, 0, 1.5) that looks along y, turned by `yaw`."""
    forward = np.array([np.sin(yaw), np.cos(yaw), 0.0])
    right = np.array([np.cos(yaw), -np.sin(yaw), 0.0])
    axes = np.stack([right, [0.0, 0.0, -1.0], forward])
    T = np.eye(4)
    T[:3, :3], T[:3, 3] = axes, -axes @ np.array([x, 0.0, 1.5])
    return T


def project(T: np.ndarray, points: np.ndarray) -> np.ndarray:
    local = points @ T[:3, :3].T + T[:3, 3]
    return local[:, :2] / local[:, 2:] * CAMERA[:2] + CAMERA[2:]


def one_wall(texture: np.ndarray | None = None, frame: np.ndarray = WALL):
    builder = MeshBuilder()
    builder.quad(frame, builder.add_texture(np.full((8, 8, 3), 0.5, np.float32) if texture is None else texture))
    return builder.build()


def test_depth_is_that_of_the_plane_at_the_pixel_centre() -> None:
    mesh, T = one_wall(), pose(0.3, 0.1)
    projection = project_perspective(mesh, CAMERA, T, SIZE)
    raster = rasterise(mesh, projection, SIZE)
    depth = plane_depth(raster.polygon, projection.key)
    y, x = np.nonzero(raster.polygon >= 0)
    assert len(x) > 3000
    z = depth[y, x].astype(np.float64)
    rays = np.stack([(x + 0.5 - 80) / 150, (y + 0.5 - 60) / 150, np.ones(len(x))], axis=1)
    world = (rays * z[:, None] - T[:3, 3]) @ T[:3, :3]
    normal = np.cross(WALL[1], WALL[2]) / np.linalg.norm(np.cross(WALL[1], WALL[2]))
    np.testing.assert_allclose((world - WALL[0]) @ normal, 0, atol=1e-5)
    np.testing.assert_allclose(raster.nearness[y, x], 1 / z, rtol=1e-5)


def test_coverage_is_the_pixel_centres_inside() -> None:
    mesh, T = one_wall(), pose()
    raster = rasterise(mesh, project_perspective(mesh, CAMERA, T, SIZE), SIZE)
    corners = project(T, WALL[0] + np.array([[0, 0], [1, 0], [1, 1], [0, 1]]) @ WALL[1:])
    for y in range(0, SIZE[1], 7):
        for x in range(0, SIZE[0], 7):
            inside = cv2.pointPolygonTest(corners.astype(np.float32), (x + 0.5, y + 0.5), False) > 0
            assert (raster.polygon[y, x] >= 0) == inside, (x, y)


def test_homography_of_a_plane_agrees_with_its_depth_to_a_hundredth_pixel() -> None:
    mesh, T0, T1 = one_wall(), pose(0.5, 0.1), pose(-0.7, -0.2)
    first = project_perspective(mesh, CAMERA, T0, SIZE)
    second = project_perspective(mesh, CAMERA, T1, SIZE)
    raster = rasterise(mesh, first, SIZE)
    depth = plane_depth(raster.polygon, first.key).astype(np.float64)
    y, x = np.nonzero(depth > 0)
    index = raster.polygon[y, x]
    pixels = np.stack([x + 0.5, y + 0.5, np.ones(len(x))], axis=1)
    H = np.linalg.inv(second.inverse)[index] @ first.inverse[index]
    mapped = np.einsum("nij,nj->ni", H, pixels)
    rays = (pixels - [80, 60, 0]) / [150, 150, 1]
    world = (rays * depth[y, x, None] - T0[:3, 3]) @ T0[:3, :3]
    np.testing.assert_allclose(mapped[:, :2] / mapped[:, 2:], project(T1, world), atol=0.01)


def test_texture_lands_where_it_is_projected() -> None:
    """Centroid of a blob of the texture: a slip of half a pixel or half a texel would show."""
    size, centre = 128, (70.5, 50.5)
    y, x = np.mgrid[0:size, 0:size] + 0.5
    blob = np.exp(-((x - centre[0]) ** 2 + (y - centre[1]) ** 2) / (2 * 8.0**2))
    frame = np.array([[-1.6, 6.0, 2.9], [3.2, 0.0, 0.0], [0.0, 0.0, -3.2]])
    T = pose(0.113)
    for texture in (blob, cv2.resize(blob, (512, 512), interpolation=cv2.INTER_AREA)):
        mesh = one_wall(np.repeat(texture[..., None], 3, axis=2).astype(np.float32), frame)
        raster = rasterise(mesh, project_perspective(mesh, CAMERA, T, SIZE), SIZE)
        weight = raster.colour[..., 0].astype(float) * (raster.polygon >= 0)
        rows, columns = np.mgrid[0 : SIZE[1], 0 : SIZE[0]] + 0.5
        found = np.array([(weight * columns).sum(), (weight * rows).sum()]) / weight.sum()
        s, t = centre[0] / size, centre[1] / size
        expected = project(T, (frame[0] + s * frame[1] + t * frame[2])[None])[0]
        np.testing.assert_allclose(found, expected, atol=0.03)


def test_the_nearer_polygon_hides_the_farther_one() -> None:
    builder = MeshBuilder()
    texture = builder.add_texture(np.full((8, 8, 3), 0.5, np.float32))
    builder.quad(np.array([[-3.0, 8, 4], [6.0, 0, 0], [0, 0, -5.0]]), texture)
    builder.quad(np.array([[-0.5, 4, 2], [1.0, 0, 0], [0, 0, -1.0]]), texture)
    mesh = builder.build()
    projection = project_perspective(mesh, CAMERA, pose(), SIZE)
    depth = plane_depth(rasterise(mesh, projection, SIZE).polygon, projection.key)
    np.testing.assert_allclose(depth[60, 80], 4, rtol=1e-6)
    np.testing.assert_allclose(depth[60, 30], 8, rtol=1e-6)


def test_holes_show_what_is_behind() -> None:
    builder = MeshBuilder()
    grey, alpha = np.full((16, 16, 3), 0.5, np.float32), np.ones((16, 16), np.float32)
    alpha[4:12, 4:12] = 0
    builder.quad(np.array([[-2.0, 4, 3.5], [4.0, 0, 0], [0, 0, -4.0]]), builder.add_texture(grey, alpha))
    builder.quad(np.array([[-4.0, 5, 5.5], [8.0, 0, 0], [0, 0, -8.0]]), builder.add_texture(grey))
    mesh = builder.build()
    projection = project_perspective(mesh, CAMERA, pose(), SIZE)
    depth = plane_depth(rasterise(mesh, projection, SIZE).polygon, projection.key)
    np.testing.assert_allclose([depth[60, 80], depth[60, 25]], [5, 4], rtol=1e-6)


def test_ground_that_passes_under_the_camera_is_clipped() -> None:
    mesh, T = one_wall(frame=np.array([[-2.0, 5.0, 0.0], [4.0, 0, 0], [0, -5.9, 0]])), pose()
    projection = project_perspective(mesh, CAMERA, T, SIZE)
    raster = rasterise(mesh, projection, SIZE)
    depth = plane_depth(raster.polygon, projection.key)
    assert (raster.polygon[:60] < 0).all()  # nothing above the horizon
    y = 119
    np.testing.assert_allclose(depth[y, 80], 1.5 * 150 / (y + 0.5 - 60), rtol=1e-6)


def test_solid_polygons_are_seen_from_one_side() -> None:
    builder = MeshBuilder()
    texture = builder.add_texture(np.full((8, 8, 3), 0.5, np.float32))
    builder.quad(WALL, texture, (0, 0, 1, 1), SOLID)
    builder.quad(np.stack([WALL[0] + WALL[1] + [20, 0, 0], -WALL[1], WALL[2]]), texture, (0, 0, 1, 1), SOLID)
    mesh = builder.build()
    front = project_perspective(mesh, CAMERA, pose(), SIZE)
    assert front.usable.tolist() == [True, False]
    assert not project_perspective(mesh, CAMERA, pose(18, 0), SIZE).usable.any()


def test_every_face_of_a_box_is_seen_from_outside() -> None:
    builder = MeshBuilder()
    texture = builder.add_texture(np.full((8, 8, 3), 0.5, np.float32))
    for frame in ([[-0.5, 4, 0.5], [1, 0, 0], [0, 1, 0]], [[-0.5, 4, 0.5], [0, 1, 0], [1, 0, 0]]):
        builder.box(np.array(frame, dtype=float), 2.0, texture, 0.7)
        mesh = builder.build()
        projection = project_perspective(mesh, CAMERA, pose(), SIZE)
        depth = plane_depth(rasterise(mesh, projection, SIZE).polygon, projection.key)
        np.testing.assert_allclose(depth[60, 80], 4, rtol=1e-6)  # the front, not the inside of the back
        builder = MeshBuilder([mesh.textures[0]])


def test_nothing_in_view() -> None:
    mesh = one_wall()
    raster = rasterise(mesh, project_perspective(mesh, CAMERA, pose(yaw=np.pi), SIZE), SIZE)
    assert (raster.polygon == -1).all()


def test_parallel_projection_measures_distance_along_the_axis() -> None:
    mesh = one_wall(frame=np.array([[-2.0, 5.0, 3.0], [4.0, 0, 0], [0, 0, -3.0]]))
    axes = np.array([[10.0, 0, 0], [0, 0, -10.0], [0, 1.0, 0]])
    raster = rasterise(mesh, project_parallel(mesh, axes, np.array([80.0, 60.0, 2.0])), SIZE, colour=False)
    y, x = np.nonzero(raster.polygon >= 0)
    assert (x.min(), x.max(), y.min(), y.max()) == (60, 99, 30, 59)
    np.testing.assert_allclose(raster.nearness[y, x], -7, rtol=1e-6)
