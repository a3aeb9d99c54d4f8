from setuptools import setup

from steepest.building import extensions

setup(ext_modules=extensions("qhadam.kernels", "src/qhadam/kernels.pyx"))
