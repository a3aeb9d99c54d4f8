from setuptools import setup

from steepest.extension.build import extensions

setup(ext_modules=extensions("qhadam.kernels", "src/qhadam/kernels.pyx"))
