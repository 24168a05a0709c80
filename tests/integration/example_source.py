"""SCENES/{train,val}/<scene>/ with cameras.json, images and depth: data.source=my_scenes:MyScenes data.path=SCENES."""

import json
from pathlib import Path

import numpy as np

from raylg.data.pixels import read_image
from raylg.data.scene import PosedView, SceneRef


class MyScenes:
    def __init__(self, config):
        self.root = Path(config.path[0])

    def scenes(self):  # the split of a scene is the folder it lies in
        folders = sorted(path.parent for path in self.root.glob("*/*/cameras.json"))
        return [SceneRef(name=folder.name, split=folder.parent.name) for folder in folders]

    def load(self, scene):
        return MyScene(self.root / scene.split / scene.name)


class MyScene:
    def __init__(self, folder):
        self.folder, content = folder, json.loads((folder / "cameras.json").read_text())
        arrays = [{key: np.array(view[key]) for key in ("camera", "T_w2c")} for view in content["views"]]
        self.views = [PosedView(**view | array) for view, array in zip(content["views"], arrays, strict=True)]
        self.pairs, self.overlap = np.array(content["pairs"]), np.array(content["overlap"])

    def image(self, index):  # RGB; a camera is fx, fy, cx, cy in pixels, T_w2c maps world to camera
        return read_image(self.folder / self.views[index].name)

    def depth(self, index):  # along the optical axis, 0 where unknown; return None if there is none
        return np.load(self.folder / f"{self.views[index].name}.npy")
